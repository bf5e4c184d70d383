"""What a checkpoint holds: which array, cut into which pieces, in which file. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..layout.entries import ITEM_SIZES

FORMAT = "mlxdist checkpoint"
VERSION = 1
NAME = "manifest.json"


class Piece(NamedTuple):
    """Elements [start, stop) of a flattened array: in which file, from which byte."""

    start: int
    stop: int
    file: int
    offset: int


@dataclass(frozen=True)
class SavedArray:
    """One array, whole or in pieces.

    `kind` says whose it is: "parameters", "scalars" and "extra", or what the optimizer
    calls its own, such as "optimizer". `key` is the place in a parameter's state.
    """

    kind: str
    path: str
    key: str
    dtype: str
    shape: tuple[int, ...]
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
        """`optimizer/blocks.0.weight/m`, as tensors are called in the files."""
        return "/".join(filter(None, (self.kind, self.path, self.key)))

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.kind, self.path, self.key

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class SavedFile:
    """One rank's file, with the sha256 of each of its blocks."""

    name: str
    nbytes: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """One optimizer that holds state: where in MLX's state tree, and which paths."""

    at: str
    name: str
    settings: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint but the arrays themselves.

    Attributes:
        disks: for each file the first rank that saw it when it was written: ranks of
            one number share a folder.
        layout: the fingerprint of the plan that the ranks had.
        counters: the optimizer's own, such as its steps.
        random: each rank's key of mx.random.
        sampler: what its `state_dict()` gave.
        extra: the user's, as `extra.encode` made it.
        block: bytes of a block.
    """

    step: int
    saved_at: str
    world_size: int
    strategy: str
    layout: str
    versions: dict[str, str]
    optimizer: tuple[Leaf, ...]
    counters: dict[str, int]
    random: tuple[tuple[int, int], ...]
    sampler: dict[str, Any] | None
    extra: Any
    block: int
    disks: tuple[int, ...]
    files: tuple[SavedFile, ...]
    arrays: tuple[SavedArray, ...]

    @cached_property
    def by_identity(self) -> dict[tuple[str, str, str], SavedArray]:
        return {array.identity: array for array in self.arrays}

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is written: JSON, with the sha256 of what it says."""
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    return json.dumps({"sha256": digest(content), **content}).encode() + b"\n"


def digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
