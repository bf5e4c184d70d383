"""A small job of this package's own modules, and what its rank 0 found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..launcher import probe

_LAUNCHER = "mlxdist run: "


class Ended(NamedTuple):
    """How a job ended.

    Attributes:
        told: rank 0's findings, of all lines that begin with probe.MARK.
        said: the launcher's last word, or else the last line of standard error.
    """

    code: int
    told: dict[str, Any]
    said: str
    seconds: float


def run(options: Sequence[str], *arguments: str, patience: float) -> Ended:
    """Runs a module of this package with `mlxdist run`, for `patience` seconds.

    Args:
        options: of `mlxdist run`.
        arguments: the module's name and its own.
    """
    words = [sys.executable, "-m", "mlxdist.cli", "run", *options]
    words += ["--timeout", str(patience), "-m", *arguments]
    began = time.monotonic()
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    took = time.monotonic() - began
    told: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith(probe.MARK):
            told |= json.loads(line.removeprefix(probe.MARK))
    said = [x.strip(" \0") for x in done.stderr.splitlines() if x.strip(" -\0")]
    # mpirun may leave zero bytes and blanks before it.
    words_of_its_own = [x.partition(_LAUNCHER)[2] for x in said if _LAUNCHER in x]
    last = (words_of_its_own or said or [f"exit code {done.returncode}"])[-1]
    return Ended(done.returncode, told, last, took)
