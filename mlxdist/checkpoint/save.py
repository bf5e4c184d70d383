"""The first half of a save: the ranks compare what they save, then plan their files.

`commit.py` has the second half. After each stage the ranks exchange how it went; if it
failed on one of them, all of them stop. The older checkpoints are not touched until the
new one is complete.
"""

from __future__ import annotations

import json
import platform
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import msgspec
import numpy as np

from ..arrays.dtypes import dtype_name
from ..arrays.numpy_view import raw
from ..arrays.types import Array, Raw, Tree
from ..comm.agreement import OnAllRanks, agree
from ..layout.entries import fingerprint
from ..optim.optimizer import DistributedOptimizer
from ..optim.resumable_state import ResumableState
from ..version import __version__
from . import partition, user_data
from .block_file import BLOCK
from .collective import (
    CheckpointError,
    attempt,
    on_all_ranks,
    problem_of,
    require_success,
)
from .directory import Save, next_serial
from .manifest import Manifest, SavedArray, SavedOptimizer
from .partition import Layout, LocalPart, Part
from .save_request import SaveRequest
from .snapshot import Snapshot, take_snapshot

_DRIFT = (
    "If parameters or state differ, a rank changed them outside of update(), or a "
    "memory error occurred. The previous checkpoint is intact: resume from the last "
    "checkpoint. `extra` and the sampler have to be the same on all ranks."
)
_ROW = 8192  # bytes


class SavePlan(NamedTuple):
    """What the ranks agreed to save, and in which files.

    Attributes:
        token: random text in the name of the temporary folder.
        manifest: without the checksums of the files.
    """

    request: SaveRequest
    save: Save
    token: str
    layout: Layout
    manifest: Manifest


class _Report(msgspec.Struct):
    """What the other ranks need to plan the files.

    Attributes:
        serial: of the save, by the checkpoints that this rank sees.
        buffers: their checksums.
        saved_at, versions: rank 0's are saved, since manifests of several hosts have
            to be the same.
    """

    serial: int
    saved_at: str
    versions: dict[str, str]
    parts: list[LocalPart]
    random: tuple[int, int]
    token: str
    buffers: list[int]


def agree_to_save(
    request: SaveRequest,
    optimizer: DistributedOptimizer,
    model: Tree,
    extra: object,
    sampler: user_data.Sampler | None,
    problem: str | None,
) -> tuple[Snapshot, SavePlan]:
    """Compare what the ranks are about to save, and plan their files.

    Args:
        problem: why this rank can't save, or None.

    Raises:
        MismatchError: on all ranks, if one has a problem, or if arguments, parameters
            or replicated state differ.
        CheckpointError: on all ranks, if one can't read the folder.
    """
    world, lines = optimizer.world, request.lines
    state, not_ready = _resumable_state(optimizer)
    problem = problem or request.problem(world) or not_ready
    snapshot = None
    try:
        if state is not None and problem is None:
            snapshot = take_snapshot(model, state, extra, sampler)
            lines = [*request.lines, *_lines(snapshot, state)]
    except OnAllRanks:
        raise
    except Exception as error:  # of any kind, since the other ranks wait for it
        problem = problem_of(error)
    agree(
        world.control,
        "save_checkpoint",
        fingerprint(lines),
        lambda: lines,
        problem=problem,
        remedy=_DRIFT,
    )
    assert state is not None
    assert snapshot is not None
    return snapshot, _plan(request, snapshot, state)


def _resumable_state(
    optimizer: DistributedOptimizer,
) -> tuple[ResumableState | None, str | None]:
    """Return what is saved of an optimizer, and why it can't be, or None.

    Raises:
        RuntimeError: if this rank can't communicate any more, not even that error.
    """
    try:
        return optimizer.resumable_state("save"), None
    except ValueError as error:
        return None, str(error)


def _lines(snapshot: Snapshot, state: ResumableState) -> list[str]:
    """Describe what has to be the same on all ranks."""
    extra, arrays = snapshot.extra, snapshot.compared
    sums = {
        "/".join(filter(None, identity)): _checksum(array)
        for identity, array in arrays.items()
    }
    items = extra.items() if isinstance(extra, dict) else [("", extra)]
    return [
        *state.summary,
        f"sampler {json.dumps(snapshot.sampler)}",
        *(f"extra {name} {json.dumps(value)[:200]}" for name, value in items),
        f"extra with {fingerprint(extra):016x}",
        *(f"{name} with sum {sums[name]:08x}" for name in sorted(sums)),
    ]


def _checksum(array: Array) -> int:
    """Detects any flipped bit, and data moved by more than 8 KiB; 15 GB a second."""
    data = raw(array)
    end = data.nbytes // _ROW * _ROW
    sums = data[:end].view(np.uint64).reshape(-1, _ROW // 8).sum(axis=1)
    return zlib.crc32(data[end:].data, zlib.crc32(sums.data))


def _plan(request: SaveRequest, snapshot: Snapshot, state: ResumableState) -> SavePlan:
    all_gather, failure = state.world.control.all_gather_bytes, "nothing was saved"
    report, problem = attempt(lambda: _report(request, snapshot))
    reports = [
        report
        for report in require_success(all_gather, failure, problem, report)
        if report is not None
    ]
    problem = partition.scalar_problem([each.parts for each in reports])
    if problem is not None:
        raise CheckpointError(f"nothing was saved: {problem}. {_DRIFT}")
    plan = partial(_plan_files, request, snapshot, state, reports)
    return on_all_ranks(all_gather, failure, plan)


def _report(request: SaveRequest, snapshot: Snapshot) -> _Report:
    buffers = [snapshot.replicated["parameters", p, ""] for p in snapshot.buffers]
    versions = {"mlxdist": __version__, "mlx": version("mlx")}
    return _Report(
        next_serial(request.folder),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        {**versions, "python": platform.python_version()},
        snapshot.local_parts,
        user_data.random_key(),
        secrets.token_hex(8),
        [_checksum(buffer) for buffer in buffers],
    )


def _plan_files(
    request: SaveRequest,
    snapshot: Snapshot,
    state: ResumableState,
    reports: Sequence[_Report],
) -> SavePlan:
    save = Save(max(report.serial for report in reports), request.step)
    layout = _lay_out(
        request, snapshot, reports, [path.text for path in state.plan.by_path]
    )
    manifest = _manifest(request, snapshot, state, layout, reports)
    return SavePlan(request, save, reports[0].token, layout, manifest)


def _lay_out(
    request: SaveRequest,
    snapshot: Snapshot,
    reports: Sequence[_Report],
    paths: Sequence[str],
) -> Layout:
    shares = partition.assign_sharded([report.parts for report in reports], paths)
    first = reports[0].buffers
    differing = {
        ("parameters", path, "")
        for index, path in enumerate(snapshot.buffers)
        if any(report.buffers[index] != first[index] for report in reports)
    }
    arrays = [
        SavedArray(*identity, dtype_name(array.dtype), tuple(array.shape))
        for identity, array in snapshot.replicated.items()
    ]
    # Running statistics and the like may differ over ranks: rank 0's are saved.
    root = [array for array in arrays if array.identity in differing]
    common = [array for array in arrays if array.identity not in differing]
    shares[0] += [Part(array, 0, array.size) for array in root]
    partition.spread(shares, common)
    empty = [array for array in arrays if not array.size]
    return partition.lay_out(shares, empty, f"step {request.step}")


def _manifest(
    request: SaveRequest,
    snapshot: Snapshot,
    state: ResumableState,
    layout: Layout,
    reports: Sequence[_Report],
) -> Manifest:
    """Return the manifest but for `disks` and `files`, which are not written yet."""
    plan = state.plan
    return Manifest(
        step=request.step,
        saved_at=reports[0].saved_at,
        world_size=plan.ranks,
        strategy=plan.strategy,
        layout=f"{plan.fingerprint:016x}",
        versions=reports[0].versions,
        optimizer=tuple(SavedOptimizer(*leaf) for leaf in state.leaves),
        counters=state.counters(),
        random=tuple(report.random for report in reports),
        sampler=snapshot.sampler,
        extra=snapshot.extra,
        block=BLOCK,
        disks=(),
        files=(),
        arrays=layout.arrays,
    )


def data_of_parts(parts: Sequence[Part], snapshot: Snapshot) -> Iterator[Raw]:
    """Yield the bytes of a rank's parts in order, as views where possible."""
    arrays: Mapping[tuple[str, str, str], Array] = {
        **snapshot.replicated,
        **{identity: part.array for identity, part in snapshot.sharded.items()},
    }
    for array, start, stop in parts:
        data = raw(arrays[array.identity])
        if data.nbytes > (stop - start) * array.item_size:
            data = data[start * array.item_size : stop * array.item_size]
        yield data
