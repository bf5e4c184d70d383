"""Types of the JSON reports of hosts and of check jobs, as they are printed there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from ..launcher.interface_output import InterfaceOutput
from .ssh_errors import Problem


class DeviceReport(TypedDict, total=False):
    """The device that MLX computes on, or the error of importing MLX."""

    kind: str  # "cpu" or "gpu"
    name: str
    error: str


class MpiReport(TypedDict, total=False):
    """The MPI library that mpi4py loads, or the error of loading it."""

    version: str
    libmpi: str  # path
    mpirun: str  # path
    error: str
    missing_module: str  # name of the module whose import failed


class PeerReport(TypedDict, total=False):
    """Why no connection to another host succeeds; empty if one does."""

    error: str
    resolved: bool  # whether the host's name has an address


class HostReport(TypedDict):
    """A host's report on itself: see `collect` in launcher/probe.py."""

    host: str  # the host name it gives itself
    system: str  # "Darwin ..." or "Linux ..."
    macos: str  # version; empty on other systems
    python: str  # version
    executable: str
    packages: dict[str, str | None]  # name -> version, None if not installed
    variables: dict[str, str]  # of the environment, that checks look at
    device: DeviceReport
    gpus: int  # NVIDIA's
    mac: dict[str, str]  # what macOS's programs print, by their names
    mpi: MpiReport
    tmpdir: str
    leftovers: list[str]  # session folders of Open MPI whose processes were killed
    memory_free: int | None  # bytes
    disk_free: int  # bytes
    network: InterfaceOutput
    peers: dict[str, PeerReport]  # by the other host's name


@dataclass(frozen=True)
class Answer:
    """The answer of one host to the survey.

    Attributes:
        host: the name by which it was asked.
        report: None if it did not answer.
        error: the last line of ssh's or Python's error output.
        problem: the kind of that error.
    """

    host: str
    is_local: bool
    report: HostReport | None = None
    error: str = ""
    problem: Problem = "unknown"


class PairReport(TypedDict):
    """A link between two ranks."""

    ranks: list[int]
    latency: float  # seconds, one way
    bandwidth: float  # bytes per second in each direction, both used at once


class ExchangeReport(TypedDict):
    """An all-reduce among all ranks, alone and during computation."""

    buckets: int
    bytes: int
    seconds: float  # of the all-reduce
    computing: float  # seconds of the computation
    both: float  # seconds of both, the all-reduce during the computation


class LinkReport(TypedDict, total=False):
    """The report of link_job; or the job's `error`, and the `command` that shows it."""

    exact: bool  # whether sums over all ranks are exact
    ranks: int
    hosts: list[str]  # of each rank
    pairs: list[PairReport]
    exchange: ExchangeReport
    error: str
    command: str


class SelftestReport(TypedDict, total=False):
    """Lines that selftest_job prints; differences are the largest of any parameter."""

    started: bool
    one_process: float  # difference from training in one process
    sharded: float  # difference of sharded from replicated state
    identical: bool  # whether all ranks have the same parameters
    device: str
    saved: bool  # a checkpoint
    checkpoint: float  # difference of the resumed from the uninterrupted training
