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
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..arrays.blockwise import BLOCK as ROW
from ..arrays.blockwise import widen
from ..arrays.numpy_view import raw
from ..arrays.types import Raw
from ..layout.entries import ITEM_SIZES, split_counts
from ..layout.paths import KeyPath
from ..optim.quantized_state import CODES
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
from .state_targets import alternatives, moment_blocks, pair_problems

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
TRAINING = "training.json"


class _Output(NamedTuple):
    """One tensor of a plain file, and the saved arrays that it is made of.

    Attributes:
        scales: of a moment in 8 bits, whose codes are `array`; it becomes float32.
    """

    tensor: Tensor
    array: SavedArray
    scales: SavedArray | None = None


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
) -> dict[str, list[_Output]]:
    """Return each plain file's tensors. Moments in 8 bits become float32.

    Args:
        at: for each parameter the prefix of its optimizer in MLX's state tree.
    """
    problem = next(pair_problems(arrays), None)
    if problem is not None:
        raise DamagedError(problem)
    by_identity = {array.identity: array for array in arrays}
    groups: dict[str, list[_Output]] = {}
    blocks = moment_blocks(arrays)
    scales = {array.identity for array in blocks.values()}
    for array in arrays:
        if array.identity in scales:
            continue
        if array.dtype == "float64" and array.shape:
            raise ValueError(f"{array}: MLX's safetensors files can't hold float64")
        file, name = _plain_name(array, at)
        parameter = by_identity.get(("parameters", array.path, ""))
        output = _output(name, array, blocks.get(array.identity), parameter)
        groups.setdefault(file, []).append(output)
    return groups


def _output(
    name: str,
    array: SavedArray,
    scales: SavedArray | None,
    parameter: SavedArray | None,
) -> _Output:
    """Return an array's tensor in a plain file: a float64 number becomes a float32."""
    if scales is not None:
        fits = parameter is not None and parameter.size == array.size
        shape = parameter.shape if parameter is not None and fits else (array.size,)
        nbytes = array.size * ITEM_SIZES["float32"]
        name = name.removesuffix(f".{CODES}")
        return _Output(Tensor(name, "float32", shape, nbytes), array, scales)
    if array.dtype == "float64":
        return _Output(
            Tensor(name, "float32", array.shape, ITEM_SIZES["float32"]), array
        )
    return _Output(Tensor(name, array.dtype, array.shape, array.nbytes), array)


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
    group: Sequence[_Output],
    readers: FileReaders,
    progress: Callable[[int], None],
) -> None:
    ordered = sorted(group, key=lambda o: -ITEM_SIZES[o.tensor.dtype])
    with Writer(path) as writer:
        writer.write(header([output.tensor for output in ordered], {}))
        for output in ordered:
            for data, nbytes in _blocks(output, readers):
                writer.write(data.data)
                progress(nbytes)
        writer.finish()


def _blocks(output: _Output, readers: FileReaders) -> Iterator[tuple[Raw, int]]:
    """Yield a tensor's bytes in order, a block at a time, and how many were read."""
    array, scales = output.array, output.scales
    for start, stop in split_counts(array.size, BLOCK // array.item_size):
        if start == stop:
            continue
        data = _elements(array, start, stop, readers)
        nbytes = data.nbytes
        if array.dtype == "float64":
            data = data.view(np.float64).astype(np.float32).view(np.uint8)
        if scales is not None:
            part = _elements(scales, start // ROW, stop // ROW, readers)
            nbytes += part.nbytes
            codes = data.view(array.dtype).reshape(-1, ROW)
            wide = widen(mx.array(codes), mx.array(part.view(np.float32)))
            data = raw(wide)
        yield data, nbytes


def _elements(array: SavedArray, start: int, stop: int, readers: FileReaders) -> Raw:
    """Return the bytes of elements [start, stop) of an array, from its pieces."""
    size = array.item_size
    data = np.empty((stop - start) * size, np.uint8)
    for piece in array.pieces:
        low, high = max(piece.start, start), min(piece.stop, stop)
        if low < high:
            offset = piece.offset + (low - piece.start) * size
            out = data[(low - start) * size : (high - start) * size]
            readers[piece.file].read(offset, out)
    return data


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
        others = [other for key in arrays for other in alternatives(key)]
        for key in dict.fromkeys([*others, *arrays]):
            name = f"{path.dotted}.{KeyPath.parse(key).dotted}"
            names[at_path[path.text] + name] = ("optimizer", path.text, key)
    return names
