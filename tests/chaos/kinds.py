"""The kinds of fault, by name, and what a job may do after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .plan import Fault, Plan

if TYPE_CHECKING:
    from .job import RunningJob

Action = tuple[float, Callable[[], object]]  # after so many seconds


class Effect(Enum):
    """What a fault may do to the attempt in which it strikes."""

    NONE = "the attempt goes on"
    MAY_END = "the attempt may end with an error"
    ENDS = "the attempt ends with an error"
    ENDS_JOB = "the job ends, and is not started again"


class Kind:
    """A kind of fault.

    Attributes:
        name: of the class in lower case, with underscores.
        effect: on the attempt.
        at_start: strikes before `init()`, not in a step.
        needs_hosts, needs_disks, needs_restart, needs_limit: what the plan must have.
        longest: seconds that it may last at most, 0 if it does not end by itself.
        wait: seconds that mlxdist allows beyond the time-outs of the plan.
        exit_code: of `mlxdist run`, where only one is right.
    """

    effect: ClassVar[Effect] = Effect.ENDS
    at_start: ClassVar[bool] = False
    needs_hosts: ClassVar[bool] = False
    needs_disks: ClassVar[bool] = False
    needs_restart: ClassVar[bool] = False
    needs_limit: ClassVar[bool] = False
    longest: ClassVar[float] = 0.0
    wait: ClassVar[float] = 0.0
    exit_code: ClassVar[int | None] = None

    @classmethod
    def available(cls) -> bool:
        """Return whether this machine can do it."""
        return True

    def strike(self, fault: Fault, folder: Path) -> None:
        """Do it in the process of `fault.rank`, on its main thread."""

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        """Return what to do outside of the ranks once `fault.rank`, `pid`, is there."""
        return ()

    def cause(self, fault: Fault, plan: Plan) -> str:
        """Return a regular expression for what `mlxdist run` must name."""
        return rf"\branks? ([\d, and to]+ )?{fault.rank}\b"


def all_kinds() -> dict[str, Kind]:
    """Return the kinds by name."""
    from . import outer_faults, rank_faults

    kinds = (*rank_faults.KINDS, *outer_faults.KINDS)
    return {_name(kind): kind() for kind in kinds}


def _name(kind: type[Kind]) -> str:
    name = kind.__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
