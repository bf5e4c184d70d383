"""The plan of one job: its training, where it runs, and the faults that strike it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

VARIANTS = ("adamw", "sharded", "ema", "masters", "tensors", "native")
HAND = 1000  # added to the number of an attempt that is started by hand


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once.

    Attributes:
        kind: its name in `kinds.KINDS`.
        attempt: the start of the job in which it strikes, from 0.
        step: the first one in which it may strike; 0 before `init()`.
        rank: the rank that fails, or that reports that the step has been reached.
        delay: seconds between the beginning of the step and the fault.
        seconds: how long it lasts, where it ends by itself.
        host: the virtual host that it strikes, from 0.
    """

    kind: str
    attempt: int
    step: int
    rank: int
    delay: float = 0.0
    seconds: float = 0.0
    host: int = 0


@dataclass(frozen=True)
class Configuration:
    """What determines the parameters at the end of a training.

    Attributes:
        variant: one of VARIANTS.
        steps: their number.
    """

    variant: str
    ranks: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """A job of a chaos run.

    Attributes:
        number: of the job in its run, from 0.
        hosts: virtual hosts; 1 is a job without -H.
        own_disks: each host has a small disk of its own for checkpoints, which may get
            full. Otherwise all share one folder.
        save_every: steps from one checkpoint to the next.
        tolerates: the training goes on where a checkpoint can't be saved.
        timeout: seconds; of `init()`.
        time_limit: seconds of each start; 0 for none.
    """

    number: int
    configuration: Configuration
    hosts: int = 1
    faults: tuple[Fault, ...] = ()
    max_restarts: int = 0
    own_disks: bool = False
    save_every: int = 3
    background: bool = False
    tolerates: bool = False
    timeout: float = 8.0
    time_limit: float = 0.0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def __str__(self) -> str:
        where = f"{self.configuration.ranks} ranks on {self.hosts} hosts"
        faults = ", ".join(
            f"{fault.kind}@{fault.attempt}:{fault.step}" for fault in self.faults
        )
        restarts = f", {self.max_restarts} restarts" if self.max_restarts else ""
        return f"{self.configuration.variant}, {where}{restarts}; {faults or 'none'}"


def read_plan(path: Path) -> Plan:
    fields = json.loads(path.read_text())
    fields["configuration"] = Configuration(**fields["configuration"])
    fields["faults"] = tuple(Fault(**fault) for fault in fields["faults"])
    return Plan(**fields)
