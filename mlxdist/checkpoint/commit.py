"""How a rank writes its file, and how a checkpoint becomes one: in a single step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..arrays.numpy_view import Raw, raw
from ..comm.together import CheckpointError, Exchange, together
from . import directory as saves
from . import manifest as manifests
from .manifest import Manifest, SavedFile
from .save import Job, file_name
from .snapshot import Snapshot


def data_of(job: Job, taken: Snapshot) -> Iterator[Raw]:
    """The bytes of this rank's parts, one after the other, without copies."""
    arrays = dict(taken.every)
    for kind, tree in taken.own.items():
        for path, held in tree.items():
            arrays |= {(kind, path, key): array for key, array in held.items()}
    for array, start, stop in job.layout.parts[job.rank]:
        data = raw(arrays[array.identity])
        if data.nbytes > (stop - start) * array.item_size:
            data = data[start * array.item_size : stop * array.item_size]
        yield data


def finish(job: Job, data: Iterable[Raw], exchange: Exchange) -> None:
    """Writes this rank's file and, once all are whole, makes it the last checkpoint.

    Raises:
        CheckpointError: on all ranks, and the folder is as it was.
    """
    file, problem = None, None
    try:
        file = _write(job, data)
    except Exception as error:  # whatever it is, the other ranks wait to hear of it
        problem = str(error) or repr(error)
    finally:
        job.writer.close()
    sent = None if file is None else [file.name, file.nbytes, file.sha256]
    try:
        answers = together(exchange, job.failed, problem, file=sent, disk=job.leader)
        together(exchange, job.failed, _led(job, lambda: _commit(job, answers)))
    except CheckpointError:
        if job.leads:
            _undo(job)
        raise
    told = f"{job.save.name} is saved and whole in {job.request.folder}, but"
    together(exchange, told, _led(job, lambda: _follow(job)))


def _write(job: Job, data: Iterable[Raw]) -> SavedFile:
    job.writer.write(job.layout.headers[job.rank])
    for part in data:
        job.writer.write(part.data)
    digests = job.writer.finish()
    return SavedFile(file_name(job.rank), job.writer.nbytes, digests)


def _led(job: Job, act: Callable[[], None]) -> str | None:
    """Has the leader of each disk do something; what went wrong with it."""
    try:
        if job.leads:
            act()
    except OSError as error:
        return str(error)
    return None


def _commit(job: Job, answers: Sequence[Any]) -> None:
    files = [answer["file"] for answer in answers]
    manifest = Manifest(
        **job.about,
        disks=tuple(answer["disk"] for answer in answers),
        files=tuple(SavedFile(name, size, tuple(sha)) for name, size, sha in files),
        arrays=job.layout.arrays,
    )
    data = manifests.to_bytes(manifest)
    saves.commit(job.request.folder, job.save, job.token, data)


def _follow(job: Job) -> None:
    saves.point_to(job.request.folder, job.save)
    saves.prune(job.request.folder, job.request.keep, job.token)


def _undo(job: Job) -> None:
    folder = job.request.folder
    shutil.rmtree(folder / job.save.unfinished(job.token), ignore_errors=True)
    saves.remove(folder, job.save, job.token)
