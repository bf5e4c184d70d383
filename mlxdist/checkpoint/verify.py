"""What the command `mlxdist checkpoint` tells of a folder of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import directory as saves
from .block_file import THREADS, Reader
from .directory import Save
from .durable import DamagedError
from .manifest import Manifest
from .safetensors import Tensor, tensors_of


class Found(NamedTuple):
    """A checkpoint; `problem` is why it can't be used, by its manifest and sizes."""

    save: Save
    manifest: Manifest | None
    problem: str | None


def look(folder: Path, step: int | None = None) -> list[Found]:
    """The checkpoints of a folder, the last one first, without reading their data.

    Raises:
        ValueError: where there are none, of a step if one is named.
    """
    every = saves.listed(folder)
    wanted = [save for save in every if step in (None, save.step)]
    if not wanted:
        steps = ", ".join(str(save.step) for save in every)
        there = f"; it has steps {steps}" if steps else ""
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ValueError(f"there is {what} in {folder}{there}")
    return [_look(folder, save) for save in wanted]


def _look(folder: Path, save: Save) -> Found:
    try:
        manifest = saves.parse(saves.read_manifest(folder, save), folder, save)
    except DamagedError as error:
        return Found(save, None, str(error))
    wrong = list(filter(None, saves.problems(folder, save, manifest)))
    return Found(save, manifest, wrong[0] if wrong else None)


def verify(
    folder: Path, found: Found, progress: Callable[[int], None]
) -> Iterator[str]:
    """All that is wrong with a checkpoint: reads every byte of it.

    Args:
        progress: told of the bytes that were read.
    """
    if found.manifest is None:
        yield str(found.problem)
        return
    for index in range(len(found.manifest.files)):
        try:
            _verify_file(folder / found.save.name, found.manifest, index, progress)
        except (DamagedError, OSError) as error:
            yield str(error)


def _verify_file(
    place: Path, manifest: Manifest, index: int, progress: Callable[[int], None]
) -> None:
    file = manifest.files[index]
    path = place / file.name
    reader = Reader(path, file.sha256, file.nbytes, block=manifest.block)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            checks = pool.map(reader.check, range(len(file.sha256)))
            for start, _ in enumerate(checks):
                done = file.nbytes - start * manifest.block
                progress(min(done, manifest.block))
        if _places(tensors_of(reader)) != _stated(manifest, index):
            raise DamagedError(f"{path} holds other tensors than its manifest says")
    finally:
        reader.close()


def _places(tensors: list[Tensor]) -> set[tuple[int, int]]:
    return {(tensor.offset, tensor.nbytes) for tensor in tensors}


def _stated(manifest: Manifest, index: int) -> set[tuple[int, int]]:
    return {
        (piece.offset, (piece.stop - piece.start) * array.item_size)
        for array in manifest.arrays
        for piece in array.pieces
        if piece.file == index
    }
