"""The second half of a save: each rank writes its file, then one rename commits all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from ..arrays.types import Raw
from ..comm.collectives import Collectives
from . import directory
from .block_file import Writer
from .collective import AllGather, CheckpointError, problem_of, require_success
from .durable import flush_folder
from .manifest import SavedFile, to_bytes
from .save import SavePlan


class FileReport(msgspec.Struct):
    """A rank's file, and the first rank that sees it: the leader of its disk."""

    file: SavedFile | None
    leader: int


class SaveJob:
    """One rank's part in a save. Made by all ranks together.

    Owns the rank's open file and the temporary folder. A context manager, which closes
    the file, and removes the folder unless the checkpoint is committed.

    Args:
        data: the bytes of this rank's parts in order.

    Raises:
        CheckpointError: on all ranks, if one can't create its file.
    """

    def __init__(self, plan: SavePlan, data: Iterable[Raw], comm: Collectives):
        self._plan, self._data, self._rank = plan, data, comm.rank
        self._folder = plan.request.folder
        self._temporary = self._folder / plan.save.temporary(plan.token)
        paths = [self._temporary / file_name(rank) for rank in range(comm.size)]
        self._writer: Writer | None = None
        self._problem: str | None = None
        self._is_renamed = False
        self._leader = self._rank  # until it is known which ranks share a disk
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._writer = Writer(paths[self._rank])
        except Exception as error:  # of any kind, since the other ranks wait for it
            self._problem = problem_of(error)
        failure = f"{self._temporary} can't be written"
        try:
            require_success(comm.all_gather_bytes, failure, self._problem, None)
        except BaseException:
            self.close()
            raise
        self._leader = next(rank for rank, path in enumerate(paths) if path.exists())
        if self._leads:
            directory.sweep(self._folder, self._temporary.name)

    def __enter__(self) -> SaveJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._leads and not self._is_renamed:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def copy_data(self) -> None:
        """Copy the bytes that will be written, so that training may go on.

        If this fails, `write` returns the error.
        """
        try:
            self._data = [part.copy() for part in self._data]
        except Exception as error:  # of any kind, since the other ranks wait for it
            self._problem = problem_of(error)

    def write(self) -> tuple[SavedFile | None, str | None]:
        """Write this rank's file. Returns it, or what went wrong."""
        assert self._writer is not None
        if self._problem is not None:
            return None, self._problem
        try:
            self._writer.write(self._plan.layout.headers[self._rank])
            for part in self._data:
                self._writer.write(part.data)
            digests = self._writer.finish()
        except Exception as error:  # of any kind, since the other ranks wait for it
            return None, problem_of(error)
        finally:
            self._writer.close()
        return SavedFile(file_name(self._rank), self._writer.nbytes, digests), None

    def commit(
        self, file: SavedFile | None, problem: str | None, all_gather: AllGather
    ) -> None:
        """Make the checkpoint the newest if all ranks' files are complete.

        Raises:
            CheckpointError: on all ranks. Unless it says otherwise, the folder is as it
                was before the save.
        """
        save = self._plan.save
        failure = (
            f"the checkpoint of step {save.step} was not saved in {self._folder}; the "
            "older ones are intact"
        )
        report = FileReport(file, self._leader)
        try:
            reports = require_success(all_gather, failure, problem, report)
            problem = self._lead(partial(self._rename, reports))
            require_success(all_gather, failure, problem, None)
        except CheckpointError:
            self._undo()
            raise
        failure = f"{save.name} is saved and complete in {self._folder}, but"
        require_success(all_gather, failure, self._lead(self._remove_older), None)

    @property
    def _leads(self) -> bool:
        return self._leader == self._rank

    def _lead(self, action: Callable[[], None]) -> str | None:
        """Do on the leader of each disk what is done once; return what went wrong."""
        if self._leads:
            try:
                action()
            except Exception as error:  # of any kind, since the other ranks wait for it
                return problem_of(error)
        return None

    def _rename(self, reports: Sequence[FileReport]) -> None:
        plan = self._plan
        manifest = msgspec.structs.replace(
            plan.manifest,
            disks=tuple(report.leader for report in reports),
            files=tuple(report.file for report in reports if report.file is not None),
        )
        directory.commit(self._folder, plan.save, plan.token, to_bytes(manifest))
        self._is_renamed = True
        flush_folder(self._folder)

    def _remove_older(self) -> None:
        directory.point_to(self._folder, self._plan.save)
        directory.prune(self._folder, self._plan.request.keep, self._plan.token)

    def _undo(self) -> None:
        if self._is_renamed:
            with contextlib.suppress(OSError):
                directory.remove(self._folder, self._plan.save, self._plan.token)


def file_name(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"
