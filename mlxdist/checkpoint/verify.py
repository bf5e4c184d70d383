"""What `mlxdist checkpoint` reports of a folder of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..optim import ema, masters
from . import directory
from .block_file import THREADS, Reader, check_blocks
from .directory import Save
from .durable import DamagedError
from .manifest import Manifest
from .safetensors import Tensor, tensors_of
from .state_targets import moment_blocks, pair_problems


class CheckpointInfo(NamedTuple):
    """A checkpoint by its manifest and the sizes of its files.

    Attributes:
        manifest: None if it is damaged.
        problem: why the checkpoint can't be loaded, or None.
    """

    save: Save
    manifest: Manifest | None
    problem: str | None


def list_checkpoints(folder: Path, step: int | None = None) -> list[CheckpointInfo]:
    """Return the checkpoints of a folder, newest first; reads no arrays.

    Raises:
        ValueError: if there are none, or none of the given step.
    """
    saves = directory.list_saves(folder)
    matching = [save for save in saves if step in (None, save.step)]
    if not matching:
        steps = ", ".join(str(save.step) for save in saves)
        offer = f"; it has steps {steps}" if steps else ""
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ValueError(f"there is {what} in {folder}{offer}")
    return [_info(folder, save) for save in matching]


def _info(folder: Path, save: Save) -> CheckpointInfo:
    try:
        data = directory.read_manifest(folder, save)
        manifest = directory.parse_manifest(data, folder, save)
    except (DamagedError, OSError) as error:
        return CheckpointInfo(save, None, str(error))
    problems = filter(None, directory.file_problems(folder, save, manifest))
    return CheckpointInfo(save, manifest, next(problems, None))


def verify(
    folder: Path, checkpoint: CheckpointInfo, progress: Callable[[int], None]
) -> Iterator[str]:
    """Read every byte of a checkpoint, and yield all that is wrong with it.

    Args:
        progress: called with the number of bytes after each block.
    """
    save, manifest, problem = checkpoint
    if manifest is None:
        yield str(problem)
        return
    yield from pair_problems(manifest.arrays)
    ranges = _listed_ranges(manifest)
    for index, listed in enumerate(ranges):
        try:
            _verify_file(folder / save.name, manifest, index, listed, progress)
        except (DamagedError, OSError) as error:
            yield str(error)


def kept(manifest: Manifest) -> list[str]:
    """Return what the optimizers kept in less or more than the parameters' dtype."""
    keys = {array.key for array in manifest.arrays if array.kind == "optimizer"}
    parts = {
        "8-bit moments": bool(moment_blocks(manifest.arrays)),
        "float32 masters": masters.KEY in keys,
        "24-bit masters": masters.CORRECTION in keys,
        "EMA": ema.KEY in keys,
    }
    return [name for name, is_there in parts.items() if is_there]


def _verify_file(
    folder: Path,
    manifest: Manifest,
    index: int,
    listed: set[tuple[int, int]],
    progress: Callable[[int], None],
) -> None:
    file = manifest.files[index]
    path, block = folder / file.name, manifest.block
    with Reader(path, file.sha256, file.nbytes, block=block) as reader:
        with ThreadPoolExecutor(THREADS) as pool:
            for index in check_blocks(reader, range(len(file.sha256)), pool):
                progress(min(file.nbytes - index * block, block))
        if _ranges(tensors_of(reader)) != listed:
            raise DamagedError(f"{path} has other tensors than its manifest lists")


def _ranges(tensors: list[Tensor]) -> set[tuple[int, int]]:
    """Return the offset and bytes of each tensor."""
    return {(tensor.offset, tensor.nbytes) for tensor in tensors}


def _listed_ranges(manifest: Manifest) -> list[set[tuple[int, int]]]:
    """Return the offset and bytes of each piece in each file."""
    ranges: list[set[tuple[int, int]]] = [set() for _ in manifest.files]
    for array in manifest.arrays:
        for start, stop, file, offset in array.pieces:
            ranges[file].add((offset, (stop - start) * array.item_size))
    return ranges
