"""Plain MLX files: a checkpoint becomes them, and they load as one does.

`model.safetensors` is what `model.load_weights` loads, `optimizer.safetensors` the
optimizer's own state, as `tree_flatten(optimizer.state)` names it.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..layout.entries import split_counts
from ..optim import inner as wrapped
from . import directory as saves
from .block_file import BLOCK, Reader, Writer
from .directory import Save
from .durable import DamagedError, flush_folder, write_beside
from .manifest import Manifest, Piece, SavedArray, SavedFile
from .safetensors import Tensor, header, tensors_of
from .snapshot import Identity, places, scalars

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
TRAINING = "training.json"


def consolidate(
    folder: Path, save: Save, target: Path, progress: Callable[[int], None]
) -> list[Path]:
    """Writes a checkpoint as the files that a single process loads.

    Holds a few blocks of 4 MiB in memory, whatever the size, and verifies what it
    reads. The target is there in the end, whole, or not at all.

    Args:
        target: a folder that is not there yet.
        progress: told of the bytes that were written.

    Returns:
        The files.

    Raises:
        ValueError: where the target is there, or MLX's files can't hold a dtype.
        DamagedError: where the checkpoint is.
    """
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} is there already; name a folder that is not")
    manifest = saves.parse(saves.read_manifest(folder, save), folder, save)
    groups: dict[str, list[tuple[str, SavedArray]]] = {}
    at = {path: leaf.at for leaf in manifest.optimizer for path in leaf.paths}
    for array in manifest.arrays:
        file, name = _plain_name(array, at)
        if array.dtype == "float64":
            raise ValueError(f"{array}: MLX's safetensors files can't hold float64")
        groups.setdefault(file, []).append((name, array))
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    beside.mkdir(parents=True)
    source = _Files(folder / save.name, manifest)
    try:
        for file, group in groups.items():
            _write(beside / file, group, source, progress)
        about = {"step": manifest.step, "sampler": manifest.sampler}
        text = json.dumps({**about, "extra": manifest.extra}, indent=1)
        write_beside(beside / TRAINING, text.encode() + b"\n")
        beside.rename(target)
        flush_folder(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        source.close()
    return [target / name for name in (*groups, TRAINING)]


def _plain_name(array: SavedArray, at: Mapping[str, str]) -> tuple[str, str]:
    """The plain file of an array, and its name there.

    Args:
        at: where MLX's state tree has the optimizer of each path.
    """
    if array.kind == "parameters":
        return MODEL, array.path
    if array.kind == "scalars":
        return OPTIMIZER, ".".join(filter(None, (array.path, array.key)))
    if array.kind == "optimizer":
        return OPTIMIZER, f"{at[array.path]}{array.path}.{array.key}"
    name = ".".join(filter(None, (array.path, array.key)))
    return f"{array.kind}.safetensors", name


class _Files:
    """A checkpoint's files, opened when they are needed."""

    def __init__(self, place: Path, manifest: Manifest):
        self._place, self._manifest = place, manifest
        self._readers: dict[int, Reader] = {}

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def blocks(self, array: SavedArray) -> Iterator[memoryview]:
        """An array's bytes in order, a block at a time."""
        for piece in array.pieces:
            reader = self.reader(piece.file)
            nbytes = (piece.stop - piece.start) * array.item_size
            for start, stop in split_counts(nbytes, BLOCK):
                data = np.empty(stop - start, np.uint8)
                reader.read(piece.offset + start, data)
                yield data.data

    def reader(self, index: int) -> Reader:
        if index not in self._readers:
            file, block = self._manifest.files[index], self._manifest.block
            path = self._place / file.name
            self._readers[index] = Reader(path, file.sha256, file.nbytes, block=block)
        return self._readers[index]


def _write(
    path: Path,
    group: Sequence[tuple[str, SavedArray]],
    source: _Files,
    progress: Callable[[int], None],
) -> None:
    ordered = sorted(group, key=lambda item: -item[1].item_size)
    tensors = [Tensor(name, a.dtype, a.shape, a.nbytes) for name, a in ordered]
    writer = Writer(path)
    try:
        writer.write(header(tensors, {}))
        for _, array in ordered:
            for data in source.blocks(array):
                writer.write(data)
                progress(data.nbytes)
        writer.finish()
    finally:
        writer.close()


def is_plain(folder: Path) -> bool:
    return (folder / MODEL).exists()


def manifest_of(folder: Path, optimizer: Any) -> Manifest:
    """A manifest for plain files, which nothing verifies: they hold no checksums.

    Raises:
        DamagedError: where one is no safetensors file.
    """
    names = [MODEL] if optimizer is None else [MODEL, OPTIMIZER]
    known = {} if optimizer is None else _names(optimizer)
    arrays, files = [], []
    for index, name in enumerate(names):
        reader = Reader(folder / name)
        try:
            files.append(SavedFile(name, reader.nbytes, ()))
            for tensor in tensors_of(reader):
                identity: Identity | None = ("parameters", tensor.name, "")
                if name == OPTIMIZER:
                    identity = known.get(tensor.name)
                if identity is not None:
                    arrays.append(_array(identity, tensor, index))
        finally:
            reader.close()
    return Manifest(
        step=0,
        saved_at="",
        world_size=1,
        strategy="replicated",
        layout="",
        versions={},
        optimizer=(),
        counters={},
        random=(),
        sampler=None,
        extra=None,
        block=BLOCK,
        disks=(0,) * len(files),
        files=tuple(files),
        arrays=tuple(arrays),
    )


def _array(identity: Identity, tensor: Tensor, file: int) -> SavedArray:
    array = SavedArray(*identity, tensor.dtype, tensor.shape)
    if array.nbytes != tensor.nbytes:
        raise DamagedError(f"{array} has {tensor.nbytes} bytes, wanted {array.nbytes}")
    pieces = (Piece(0, array.size, file, tensor.offset),) if array.size else ()
    return SavedArray(*identity, tensor.dtype, tensor.shape, pieces)


def _names(optimizer: Any) -> dict[str, Identity]:
    """What MLX calls the parts of an optimizer's state, as a checkpoint does."""
    names: dict[str, Identity] = {}
    leaves = {id(leaf): at for at, leaf in places(optimizer._inner)}
    for kind, at, key in scalars(optimizer._inner):
        names[".".join(filter(None, (at, key)))] = (kind, at, key)
    for path, held in optimizer._saved()["optimizer"].items():
        at = leaves[id(wrapped.owner_of(optimizer._inner, path))]
        for key in held:
            names[f"{at}{path}.{key}"] = ("optimizer", path, key)
    return names
