"""The manifest: each saved array, its pieces, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from ..layout.entries import ITEM_SIZES

FORMAT = "mlxdist checkpoint"
VERSION = 1
NAME = "manifest.json"

Json = Any  # None, bool, int, float, str, or lists and dicts of them
Identity = tuple[str, str, str]  # kind, path and key of an array

# msgspec holds what is read to these bounds and patterns.
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Word = Annotated[int, Meta(ge=0, lt=2**32)]
_Text = Annotated[str, Meta(max_length=4096)]
_Shape = Annotated[tuple[_Count, ...], Meta(max_length=64)]
_DType = Annotated[str, Meta(pattern=rf"\A({'|'.join(ITEM_SIZES)})\Z")]
_FileName = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors\Z")
]
_Kind = Annotated[str, Meta(pattern=r"\A[a-z][a-z_]{0,49}\Z")]
_Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Piece(NamedTuple):
    """Elements [start, stop) of a flattened array, from byte `offset` of a file.

    `file` is an index into `Manifest.files`.
    """

    start: _Count
    stop: _Count
    file: _Count
    offset: _Count


class SavedArray(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One array, whole or in pieces.

    Attributes:
        kind: "parameters", "optimizer" (state of a parameter), "scalars" (an
            optimizer's step, learning rate and the like) or "extra".
        path: text of the parameter's path; of a scalar, its optimizer's.
        key: text of the path in the state of a parameter or optimizer; "" elsewhere.
    """

    kind: _Kind
    path: _Text
    key: _Text
    dtype: _DType
    shape: _Shape
    pieces: tuple[Piece, ...] = ()

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def item_size(self) -> int:
        return ITEM_SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.size * self.item_size

    @property
    def name(self) -> str:
        """`optimizer/blocks.0.weight/m`, the tensor's name in the files."""
        return "/".join(filter(None, self.identity))

    @property
    def identity(self) -> Identity:
        return self.kind, self.path, self.key

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class SavedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rank's file, with the sha256 of each of its blocks."""

    name: _FileName
    nbytes: _Count
    sha256: tuple[_Sha256, ...]


class SavedOptimizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One optimizer that held state.

    Attributes:
        at: prefix of its part of MLX's state tree: "" or "states.0.".
        name: module and class.
        settings: hyperparameters, as text.
        paths: texts of the paths that it updates.
    """

    at: _Text
    name: _Text
    settings: tuple[str, ...]
    paths: tuple[_Text, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The contents of a checkpoint, without the arrays' elements.

    Attributes:
        layout: fingerprint of the plan at saving.
        counters: the DistributedOptimizer's own, such as its steps.
        random: each rank's key of mx.random.
        sampler: from its `state_dict()`.
        extra: the user's, from `user_data.encode`.
        block: bytes that one sha256 covers.
        disks: for each file the first rank that saw it when it was written: ranks
            with one number share a folder.
    """

    step: _Count
    saved_at: _Text
    world_size: Annotated[int, Meta(ge=1, le=2**16)]
    strategy: _Text
    layout: _Text
    versions: dict[_Text, _Text]
    optimizer: tuple[SavedOptimizer, ...]
    counters: dict[_Text, _Count]
    random: tuple[tuple[_Word, _Word], ...]
    sampler: dict[str, Json] | None
    extra: Json
    block: Annotated[int, Meta(ge=2**12, le=2**24)]
    disks: tuple[_Count, ...]
    files: tuple[SavedFile, ...]
    arrays: tuple[SavedArray, ...]

    @cached_property
    def by_identity(self) -> dict[Identity, SavedArray]:
        return {array.identity: array for array in self.arrays}

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


def to_bytes(manifest: Manifest) -> bytes:
    """Encode a manifest as JSON, with the sha256 of its content."""
    fields = msgspec.to_builtins(manifest)
    content = {"format": FORMAT, "version": VERSION, **fields}
    return json.dumps({"sha256": digest(content), **content}).encode() + b"\n"


def digest(content: Mapping[str, Json]) -> str:
    """Return the sha256 of a manifest's content, whatever the order of its keys.

    Raises:
        ValueError: if a number is not finite, as Python reads 1e999.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
