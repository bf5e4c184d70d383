"""Plain MLX files: made of a checkpoint, and loaded as one.

`model.safetensors` is what `model.load_weights` loads. `optimizer.safetensors` is the
optimizer's state, with the names of `tree_flatten(optimizer.state)`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from ..layout.entries import ITEM_SIZES, split_counts
from ..layout.paths import KeyPath
from ..optim.resumable_state import ResumableState
from . import directory
from .block_file import BLOCK, Reader, Writer
from .directory import Save
from .durable import DamagedError, flush_folder, make_folders, write_atomically
from .lock import FolderLock
from .manifest import Identity, Piece, SavedArray, SavedFile
from .reader import Contents, FileReaders
from .safetensors import Tensor, header, tensors_of
from .snapshot import scalars

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
TRAINING = "training.json"

_Named = tuple[str, SavedArray]  # an array, and its name in a plain file


def consolidate(
    folder: Path, save: Save, target: Path, progress: Callable[[int], None]
) -> list[Path]:
    """Write a checkpoint as the files that a single MLX process loads.

    Verifies what it reads, and holds a few blocks of 4 MiB in memory, whatever the
    size. The target is created whole or not at all.

    Args:
        target: a folder that does not exist yet.
        progress: called with the number of bytes after each write.

    Returns:
        The files.

    Raises:
        ValueError: if the target exists, or an array is float64, which MLX's files
            can't hold; Python floats of an optimizer's state are written as float32.
        DamagedError: if the checkpoint is damaged.
    """
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists already; name a new folder")
    data = directory.read_manifest(folder, save)
    manifest = directory.parse_manifest(data, folder, save)
    contents = Contents(folder / save.name, manifest.files, manifest.arrays, manifest)
    at = {p: optimizer.at for optimizer in manifest.optimizer for p in optimizer.paths}
    groups = _plain_files(manifest.arrays, at)
    with _new_folder(target) as temporary:
        with FileReaders(contents) as readers:
            for file, group in groups.items():
                _write(temporary / file, group, readers, progress)
        training = {"step": manifest.step, "sampler": manifest.sampler}
        text = json.dumps({**training, "extra": manifest.extra}, indent=1)
        write_atomically(temporary / TRAINING, text.encode() + b"\n")
    return [target / name for name in (*groups, TRAINING)]


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes the target at the end, or is removed."""
    make_folders(target.parent)
    with closing(FolderLock(target.parent, f".{target.name}.lock")):
        _sweep(target)
        name = f"{_temporary_prefix(target)}{secrets.token_hex(8)}"
        temporary = target.with_name(name)
        temporary.mkdir()
        try:
            yield temporary
            temporary.rename(target)
            flush_folder(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _temporary_prefix(target: Path) -> str:
    return f".{target.name}.consolidating-"


def _sweep(target: Path) -> None:
    """Remove what killed commands left that wrote the same target."""
    pattern = re.escape(_temporary_prefix(target)) + "[0-9a-f]{16}"
    for path in target.parent.iterdir():
        if re.fullmatch(pattern, path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _plain_files(
    arrays: Sequence[SavedArray], at: Mapping[str, str]
) -> dict[str, list[_Named]]:
    """Return each plain file's arrays.

    Args:
        at: for each parameter the prefix of its optimizer in MLX's state tree.
    """
    groups: dict[str, list[_Named]] = {}
    for array in arrays:
        if array.dtype == "float64" and array.shape:
            raise ValueError(f"{array}: MLX's safetensors files can't hold float64")
        file, name = _plain_name(array, at)
        groups.setdefault(file, []).append((name, array))
    return groups


def _plain_name(array: SavedArray, at: Mapping[str, str]) -> tuple[str, str]:
    """Return the plain file of an array, and the array's name in it."""
    path, key = KeyPath.parse(array.path).dotted, KeyPath.parse(array.key).dotted
    if array.kind == "parameters":
        return MODEL, path
    if array.kind == "optimizer" and array.path not in at:
        raise ValueError(f"{array} is of no optimizer that the manifest lists")
    if array.kind == "optimizer":
        return OPTIMIZER, f"{at[array.path]}{path}.{key}"
    if array.kind == "scalars":
        return OPTIMIZER, ".".join(filter(None, (path, key)))
    return f"{array.kind}.safetensors", array.path  # which `extra` refers to


def _write(
    path: Path,
    group: Sequence[_Named],
    readers: FileReaders,
    progress: Callable[[int], None],
) -> None:
    ordered = sorted(group, key=lambda item: -item[1].item_size)
    tensors = [_tensor(name, array) for name, array in ordered]
    with Writer(path) as writer:
        writer.write(header(tensors, {}))
        for _, array in ordered:
            for data in _blocks(array, readers):
                writer.write(data)
                progress(data.nbytes)
        writer.finish()


def _tensor(name: str, array: SavedArray) -> Tensor:
    """Return an array's tensor in a plain file: a float64 number becomes a float32."""
    if array.dtype == "float64":
        return Tensor(name, "float32", array.shape, ITEM_SIZES["float32"])
    return Tensor(name, array.dtype, array.shape, array.nbytes)


def _blocks(array: SavedArray, readers: FileReaders) -> Iterator[memoryview]:
    """Yield an array's bytes in order, a block at a time."""
    for piece in array.pieces:
        reader = readers[piece.file]
        nbytes = (piece.stop - piece.start) * array.item_size
        for start, stop in split_counts(nbytes, BLOCK):
            data = np.empty(stop - start, np.uint8)
            reader.read(piece.offset + start, data)
            if array.dtype == "float64":
                data = data.view(np.float64).astype(np.float32).view(np.uint8)
            yield data.data


def exist(folder: Path) -> bool:
    """Return whether a host has plain files. Raises OSError if that can't be known."""
    return os.path.lexists(folder / MODEL)


def read_contents(folder: Path, state: ResumableState | None) -> Contents:
    """List the arrays of plain files, which have no checksums.

    Raises:
        DamagedError: if one is not a safetensors file.
    """
    names = [MODEL] if state is None else [MODEL, OPTIMIZER]
    known = {} if state is None else _state_names(state)
    arrays, files = [], []
    for index, name in enumerate(names):
        with Reader(folder / name) as reader:
            files.append(SavedFile(name, reader.nbytes, ()))
            for tensor in tensors_of(reader):
                identity: Identity | None = ("parameters", tensor.name, "")
                if name == OPTIMIZER:
                    identity = known.get(tensor.name)
                if identity is not None:
                    arrays.append(_array(identity, tensor, index))
    return Contents(folder, tuple(files), tuple(arrays))


def _array(identity: Identity, tensor: Tensor, file: int) -> SavedArray:
    array = SavedArray(*identity, tensor.dtype, tensor.shape)
    if array.nbytes != tensor.nbytes:
        raise DamagedError(f"{array} has {tensor.nbytes} bytes, wanted {array.nbytes}")
    pieces = (Piece(0, array.size, file, tensor.offset),) if array.size else ()
    return SavedArray(*identity, tensor.dtype, tensor.shape, pieces)


def _state_names(state: ResumableState) -> dict[str, Identity]:
    """Return the identity of each array of the state by its name in MLX's tree."""
    names: dict[str, Identity] = {}
    for kind, at, key in scalars(state):
        names[".".join(filter(None, (at, key)))] = (kind, at, key)
    at_path = {path: leaf.at for leaf in state.leaves for path in leaf.paths}
    for path, arrays in state.arrays().items():
        for key in arrays:
            name = f"{path.dotted}.{KeyPath.parse(key).dotted}"
            names[at_path[path.text] + name] = ("optimizer", path.text, key)
    return names
