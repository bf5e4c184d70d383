"""A job: what to run, on which machines, with which settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .hosts import Host


@dataclass(frozen=True)
class Job:
    """What to run, and where.

    Attributes:
        script: a path, or a module's name where `module` is true.
        label: begin each line of output with its rank.
        threads: CPU threads of a rank; None shares the cores of each machine.
        hosts: the machines; empty for this one alone.
        interface: the network of MPI's traffic: a name, or `10.0.0.0/24`. None leaves
            it to Open MPI.
        backend: of the data plane: "mpi", "ring", "jaccl", "jaccl-ring" or "nccl"; None
            leaves it to the ranks.
        variables: environment variables to set for the ranks.
        cwd, python: the ranks' folder and interpreter, on each host.
        timeout: seconds after which the job is ended.
        log_dir: folder for a file of each rank's output.
        timeline: file for a Chrome trace of all ranks, written by rank 0.
        mpi_arguments: more arguments for mpirun, passed on unchanged.
    """

    ranks: int
    script: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    label: bool = False
    threads: int | None = None
    hosts: tuple[Host, ...] = ()
    interface: str | None = None
    backend: str | None = None
    variables: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None
    python: str | None = None
    timeout: float | None = None
    log_dir: Path | None = None
    timeline: Path | None = None
    mpi_arguments: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The absolute path of the ranks' folder.

        Raises:
            ValueError: the current folder was removed.
        """
        try:
            return os.path.abspath(self.cwd or os.getcwd())
        except FileNotFoundError:
            raise ValueError(
                "the current folder is gone; cd to another one, or name one with --cwd"
            ) from None
