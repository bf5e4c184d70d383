"""Faults of what surrounds the ranks: launcher, mpirun, daemons, wires and disks."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from tests.support.wire import has_netem

from .kinds import Action, Effect, Kind
from .plan import Fault, Plan

if TYPE_CHECKING:
    from .job import RunningJob

_ANYONE = r"mlxdist run: .*\brank"  # where nobody can know who caused it


class KillMpirun(Kind):
    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.signal_mpirun(signal.SIGKILL)

    def cause(self, fault: Fault, plan: Plan) -> str:
        return "mpirun was ended by SIGKILL"


class StopMpirun(Kind):
    effect = Effect.MAY_END
    needs_limit = True

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.signal_mpirun(signal.SIGSTOP)

    def cause(self, fault: Fault, plan: Plan) -> str:
        return _ANYONE


class PauseMpirun(StopMpirun):
    effect = Effect.NONE
    needs_limit = False
    longest = 3.0

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield from super().actions(fault, job, pid)
        end = fault.delay + fault.seconds
        yield end, lambda: job.signal_mpirun(signal.SIGCONT)


class Suspend(Kind):
    """Ctrl-Z in a terminal, then `fg`."""

    effect = Effect.NONE
    longest = 4.0

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.send(job.launcher, signal.SIGTSTP)
        end = fault.delay + fault.seconds
        yield end, lambda: job.send(job.launcher, signal.SIGCONT)


class Sigusr1(Kind):
    """The training saves a checkpoint at its next step."""

    effect = Effect.NONE

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.send(job.launcher, signal.SIGUSR1)


class Sigterm(Kind):
    """`mlxdist run` gets a signal."""

    effect = Effect.ENDS_JOB
    number: ClassVar[signal.Signals] = signal.SIGTERM
    exit_code = 128 + signal.SIGTERM

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.send(job.launcher, self.number)

    def cause(self, fault: Fault, plan: Plan) -> str:
        return f"ended by {self.number.name}"


class Sigint(Sigterm):
    number = signal.SIGINT
    exit_code = 128 + signal.SIGINT


class KillLauncher(Sigterm):
    number = signal.SIGKILL
    exit_code = -signal.SIGKILL

    def cause(self, fault: Fault, plan: Plan) -> str:
        return ""  # nobody is left to name it


class KillDaemon(Kind):
    needs_hosts = True

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.signal_daemon(fault.host, signal.SIGKILL)

    def cause(self, fault: Fault, plan: Plan) -> str:
        return f"node{fault.host + 1}"


class StopDaemon(KillDaemon):
    effect = Effect.MAY_END
    needs_limit = True

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.signal_daemon(fault.host, signal.SIGSTOP)

    def cause(self, fault: Fault, plan: Plan) -> str:
        return _ANYONE


class CutWire(KillDaemon):
    """The host is lost, and can't be reached by a restart either."""

    effect = Effect.ENDS_JOB

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.cut_wire(fault.host)

    def cause(self, fault: Fault, plan: Plan) -> str:
        return r"\bnode\d"  # from both sides the other one is lost


class CutWireForSeconds(Kind):
    """TCP sends again what was lost."""

    effect = Effect.NONE
    needs_hosts = True
    longest = 2.0

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.cluster.cut(fault.host)
        yield fault.delay + fault.seconds, lambda: job.cluster.mend(fault.host)


class SlowWire(Kind):
    effect = Effect.NONE
    needs_hosts = True
    longest = 5.0

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        wire = job.cluster.hosts[fault.host].wire
        yield fault.delay, lambda: self.degrade(job, fault)
        yield fault.delay + fault.seconds, wire.restore

    def degrade(self, job: RunningJob, fault: Fault) -> None:
        job.cluster.hosts[fault.host].wire.set_rate("2mbit")


class LossyWire(SlowWire):
    """A queue that is too short drops packets; any kernel has it."""

    def degrade(self, job: RunningJob, fault: Fault) -> None:
        job.cluster.hosts[fault.host].wire.shorten_queue("50mbit", 20_000)


class LossAndDelay(SlowWire):
    @classmethod
    def available(cls) -> bool:
        return has_netem()

    def degrade(self, job: RunningJob, fault: Fault) -> None:
        job.cluster.hosts[fault.host].wire.lose(2.0, delay=0.02)


class FullDisk(Kind):
    """The disk for checkpoints is full for a while."""

    effect = Effect.MAY_END
    needs_disks = True
    longest = 3.0

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay, lambda: job.fill_disk(fault.host)
        yield fault.delay + fault.seconds, lambda: job.free_disk(fault.host)

    def cause(self, fault: Fault, plan: Plan) -> str:
        return "No space left on device"


KINDS: tuple[type[Kind], ...] = (
    KillMpirun,
    StopMpirun,
    PauseMpirun,
    Suspend,
    Sigusr1,
    Sigterm,
    Sigint,
    KillLauncher,
    KillDaemon,
    StopDaemon,
    CutWire,
    CutWireForSeconds,
    SlowWire,
    LossyWire,
    LossAndDelay,
    FullDisk,
)
