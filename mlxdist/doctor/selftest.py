"""Small jobs with a known result on the user's own machines: does it all work?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from . import subjob as small_job
from .subjob import Ended

_PATIENCE = 120  # seconds for a job
# Elementwise math on an accelerator may be fused in other ways for other shapes.
_ROUNDING = 1e-5
COMES_UP = "a job comes up"  # told only where none does


class Trial(NamedTuple):
    """One thing that was tried."""

    name: str
    passed: bool
    found: str
    seconds: float


def job(options: Sequence[str], *arguments: str) -> Ended:
    """Runs a part of the self-test with `mlxdist run`."""
    return small_job.run(
        options, "mlxdist.doctor.selftest_job", *arguments, patience=_PATIENCE
    )


def trials(
    ranks: int, options: Sequence[str], places: Sequence[str] = ()
) -> Iterator[Trial]:
    """Each trial as it ends; only the first one where no job comes up.

    Args:
        options: those of `mlxdist run`.
        places: each rank's host, where there are several.
    """
    ended = job(options, "equal")
    if ended.code and "up" not in ended.told:
        yield Trial(COMES_UP, False, ended.said, ended.seconds)
        return
    yield from _equal(ended)
    folder = f"{tempfile.gettempdir()}/mlxdist-test-{os.urandom(6).hex()}"
    victim = f"rank {ranks - 1}" + (f" on {places[ranks - 1]}" if places else "")
    yield _noticed(job(options, "killed", folder), ranks - 1, victim)
    yield _survived(job(options, "resumed", folder))


def _equal(ended: Ended) -> Iterator[Trial]:
    names = {
        "one process": "equals one process",
        "sharded": "sharded equals replicated",
    }
    for key, name in names.items():
        if ended.code or key not in ended.told:
            yield Trial(name, False, ended.said, ended.seconds)
            continue
        worst = ended.told[key]
        found = "every bit" if not worst else f"within {worst:.0e}"
        if not ended.told["identical"]:
            found += ", but ranks differ among themselves"
        passed = worst <= _ROUNDING and ended.told["identical"]
        yield Trial(name, passed, f"{found}, on {ended.told['device']}", ended.seconds)


def _noticed(ended: Ended, victim: int, named: str = "") -> Trial:
    who, _, _ = ended.said.partition(" did not finish")
    told = any(f"{word} {victim}" in who for word in ("rank", "and", ","))
    passed = ended.code != 0 and told and bool(ended.told.get("saved"))
    found = f"{named or f'rank {victim}'} was killed, exit code {ended.code}: "
    return Trial("a killed rank is noticed", passed, found + ended.said, ended.seconds)


def _survived(ended: Ended) -> Trial:
    worst = ended.told.get("checkpoint", float("inf"))
    passed = ended.code == 0 and worst <= _ROUNDING
    found = "every bit" if not worst else f"within {worst:.0e}"
    return Trial(
        "a checkpoint survives it",
        passed,
        found if "checkpoint" in ended.told else ended.said,
        ended.seconds,
    )
