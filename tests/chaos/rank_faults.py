"""Faults of a rank, which it brings about itself."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mlxdist.launcher.join_deadline import LEAST_TIMEOUT

from .kinds import Action, Effect, Kind
from .plan import Fault, Plan

if TYPE_CHECKING:
    from .job import RunningJob

_CHILD = """
import mlxdist, mlx.core as mx, mlx.optimizers as optim
world = mlxdist.init()
assert world.size == 1, world
optimizer = mlxdist.DistributedOptimizer(optim.SGD(0.1))
parameters = optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.zeros(3)})
mx.eval(parameters)
"""


def _send_later(fault: Fault, number: int) -> None:
    """Send this process a signal at any point of the step, or of a later one."""
    timer = threading.Timer(fault.delay, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


class _Signal(Kind):
    """The rank gets a signal."""

    number: ClassVar[signal.Signals]

    def strike(self, fault: Fault, folder: Path) -> None:
        _send_later(fault, self.number)


class Kill(_Signal):
    number = signal.SIGKILL


class Segfault(_Signal):
    number = signal.SIGSEGV


class SigtermOfRank(_Signal):
    number = signal.SIGTERM


class Stop(_Signal):
    """The rank makes no progress any more, and sends no heartbeats."""

    number = signal.SIGSTOP


class StopAndContinue(Stop):
    """A slow rank."""

    effect = Effect.NONE
    longest = 3.0

    def actions(self, fault: Fault, job: RunningJob, pid: int) -> Iterable[Action]:
        yield fault.delay + fault.seconds, lambda: job.send(pid, signal.SIGCONT)


class Raise(Kind):
    def strike(self, fault: Fault, folder: Path) -> None:
        raise ArithmeticError("the fault of this job")

    def cause(self, fault: Fault, plan: Plan) -> str:
        return rf"rank {fault.rank} (?s:.*)ArithmeticError: the fault of this job"


class ExitEarly(Kind):
    """The rank ends with exit code 0 before the others do."""

    def strike(self, fault: Fault, folder: Path) -> None:
        sys.exit(0)


class LeaveEarly(Kind):
    """The rank ends with exit code 0, without exit handlers."""

    def strike(self, fault: Fault, folder: Path) -> None:
        os._exit(0)


class ExitWithCode(Kind):
    def strike(self, fault: Fault, folder: Path) -> None:
        sys.exit(3)


class Late(Kind):
    """The other ranks wait for it in a step."""

    effect = Effect.NONE
    longest = 4.0

    def strike(self, fault: Fault, folder: Path) -> None:
        time.sleep(fault.seconds)


class LateStart(Late):
    """The other ranks wait for it in `init()`."""

    at_start = True


class NeverInitRaise(Raise):
    at_start = True


class NeverInitExit(ExitEarly):
    at_start = True


class NeverInitKill(Kill):
    at_start = True

    def strike(self, fault: Fault, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class NeverInitStop(Kind):
    at_start = True
    wait = LEAST_TIMEOUT

    def strike(self, fault: Fault, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class NeverInitSleep(Kind):
    at_start = True
    wait = LEAST_TIMEOUT

    def strike(self, fault: Fault, folder: Path) -> None:
        time.sleep(3600)


class Child(Kind):
    """A child process imports mlxdist, and has a world of its own."""

    effect = Effect.NONE

    def strike(self, fault: Fault, folder: Path) -> None:
        subprocess.run([sys.executable, "-c", _CHILD], check=True)


class ForkedChild(Kind):
    """A fork of the rank ends, with the rank's exit handlers."""

    effect = Effect.NONE

    def strike(self, fault: Fault, folder: Path) -> None:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            sys.exit(5)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 5, code


class OrphanedChild(Kind):
    """A child that imports mlxdist may outlive the rank for some seconds."""

    effect = Effect.NONE
    longest = 3.0

    def strike(self, fault: Fault, folder: Path) -> None:
        source = f"import time, mlxdist; mlxdist.init(); time.sleep({fault.seconds})"
        subprocess.Popen([sys.executable, "-c", source])


class FlipBit(Kind):
    """A bit of the newest checkpoint changes before the job is started again."""

    effect = Effect.NONE
    at_start = True
    needs_restart = True

    def strike(self, fault: Fault, folder: Path) -> None:
        saves = sorted((folder / "saves").glob("save-*"))
        if len(saves) < 2:  # nothing would be left to resume from
            return
        draw = random.Random(f"{fault}")
        path = draw.choice(sorted(saves[-1].iterdir()))
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)


KINDS: tuple[type[Kind], ...] = (
    Kill,
    Segfault,
    SigtermOfRank,
    Stop,
    StopAndContinue,
    Raise,
    ExitEarly,
    LeaveEarly,
    ExitWithCode,
    Late,
    LateStart,
    NeverInitRaise,
    NeverInitExit,
    NeverInitKill,
    NeverInitStop,
    NeverInitSleep,
    Child,
    ForkedChild,
    OrphanedChild,
    FlipBit,
)
