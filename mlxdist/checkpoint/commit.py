"""The second half of a save: each rank writes its file, then one rename commits all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from functools import partial

import msgspec

from ..arrays.types import Raw
from ..comm.collectives import Collectives
from . import directory, manifest_check
from .block_file import Writer
from .collective import (
    AllGather,
    CheckpointError,
    attempt,
    on_all_ranks,
    require_success,
)
from .durable import DamagedError, flush_folder, make_folders
from .lock import FolderLock, InUseError
from .manifest import SavedFile, to_bytes
from .run_history import first_serial
from .save import SavePlan


class FileReport(msgspec.Struct):
    """A rank's file, and the first rank that sees it: the leader of its disk."""

    file: SavedFile | None
    leader: int


class GoodSaves(msgspec.Struct):
    """Older checkpoints that are good on a rank's disk; None if it does not lead it."""

    saves: list[directory.Save] | None


class SaveJob:
    """One rank's part in a save. Made by all ranks together.

    Owns the rank's open file, the temporary folder and the lock. A context manager,
    which closes the file, removes the folder unless it is committed, and unlocks.

    Args:
        data: the bytes of this rank's parts in order.

    Raises:
        CheckpointError: on all ranks, if one can't create its file, or another job
            saves into the folder.
    """

    def __init__(self, plan: SavePlan, data: Iterable[Raw], comm: Collectives):
        self._plan, self._data, self._rank = plan, data, comm.rank
        self._folder = plan.request.folder
        self._temporary = self._folder / plan.save.temporary(plan.token)
        self._paths = [self._temporary / file_name(rank) for rank in range(comm.size)]
        self._writer: Writer | None = None
        self._lock: FolderLock | None = None
        self._problem: str | None = None
        self._is_renamed = False
        self._run: directory.Run | None = None
        self._leader = self._rank  # until it is known which ranks share a disk
        failure = f"nothing was saved in {self._folder}"
        try:
            on_all_ranks(comm.all_gather_bytes, failure, self._create)
            on_all_ranks(comm.all_gather_bytes, failure, self._take_folder)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SaveJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder unless it is committed. May be called twice."""
        if self._writer is not None:
            self._writer.close()
        if self._leads and not self._is_renamed:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def _create(self) -> None:
        make_folders(self._folder)
        self._temporary.mkdir(exist_ok=True)
        self._writer = Writer(self._paths[self._rank])

    def _take_folder(self) -> None:
        """Find this disk's leader, which locks the folder and tidies it."""
        ranks = [rank for rank, path in enumerate(self._paths) if path.exists()]
        if not ranks:
            raise InUseError(f"{self._folder} is in use: another job tidies it")
        self._leader = ranks[0]
        if self._leads:
            self._lock = FolderLock(self._folder)
            directory.sweep(self._folder, self._temporary.name)

    def copy_data(self) -> None:
        """Copy the bytes that will be written, so that training may go on.

        If this fails, `write` returns the error.
        """
        copies, self._problem = attempt(lambda: [part.copy() for part in self._data])
        self._data = copies or []

    def write(self) -> tuple[SavedFile | None, str | None]:
        """Write this rank's file. Returns it, or what went wrong."""
        if self._problem is not None:
            return None, self._problem
        return attempt(self._write)

    def _write(self) -> SavedFile:
        assert self._writer is not None
        try:
            self._writer.write(self._plan.layout.headers[self._rank])
            for part in self._data:
                self._writer.write(part.data)
            digests = self._writer.finish()
        finally:
            self._writer.close()
        return SavedFile(file_name(self._rank), self._writer.nbytes, digests)

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
            on_all_ranks(all_gather, failure, partial(self._rename, reports))
        except CheckpointError:
            self._undo()
            raise
        failure = f"{save.name} is saved and complete in {self._folder}, but"
        good, problem = attempt(self._point_to_newest)
        lists = require_success(all_gather, failure, problem, good)
        on_all_ranks(all_gather, failure, partial(self._remove_older, lists))

    @property
    def _leads(self) -> bool:
        return self._leader == self._rank

    def _rename(self, reports: Sequence[FileReport]) -> None:
        """Commit, on the leader of each disk."""
        if not self._leads:
            return
        self._check_files(reports)
        plan = self._plan
        manifest = msgspec.structs.replace(
            plan.manifest,
            disks=tuple(report.leader for report in reports),
            files=tuple(report.file for report in reports if report.file is not None),
        )
        data = to_bytes(manifest)
        manifest_check.from_bytes(data)  # whether a load will accept it
        directory.commit(self._folder, plan.save, plan.token, data)
        self._is_renamed = True
        flush_folder(self._folder)

    def _check_files(self, reports: Sequence[FileReport]) -> None:
        """Check that no file on this disk was removed while it was written.

        Raises:
            DamagedError: if one was.
        """
        for file, leader in ((report.file, report.leader) for report in reports):
            if file is None or leader != self._rank:
                continue
            problem = directory.file_problem(self._temporary / file.name, file.nbytes)
            if problem is not None:
                raise DamagedError(problem)

    def _point_to_newest(self) -> GoodSaves:
        """Write `latest`, and list older checkpoints, on the leader of each disk."""
        if not self._leads:
            return GoodSaves(None)
        save, keep = self._plan.save, self._plan.request.keep
        directory.point_to(self._folder, save)
        self._run = directory.Run(first_serial(self._folder, save.serial), save)
        most = 0 if keep is None else keep - 1
        return GoodSaves(directory.good_saves(self._folder, self._run, most))

    def _remove_older(self, lists: Sequence[GoodSaves | None]) -> None:
        """Remove the run's older checkpoints, on the leader of each disk."""
        keep = self._plan.request.keep
        if self._run is not None and keep is not None:
            saves = [
                set(each.saves) for each in lists if each and each.saves is not None
            ]
            good = set.intersection(*saves)
            directory.prune(self._folder, self._run, keep, good, self._plan.token)
        if self._lock is not None:  # before any rank returns
            self._lock.close()

    def _undo(self) -> None:
        if self._is_renamed:
            with contextlib.suppress(OSError):
                directory.remove(self._folder, self._plan.save, self._plan.token)


def file_name(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"
