"""A job of this package's own modules, started with `mlxdist run`, and its results."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..launcher import environment, probe


@dataclass(frozen=True)
class JobResult:
    """The end of a job.

    Attributes:
        code: the exit code of `mlxdist run`.
        message: the launcher's summary; the last line of standard error if it wrote
            none, because it did not start the job or all ranks finished.
        report: all objects that rank 0 printed as lines behind probe.MARK, merged.
        killed: the ranks that died without a report, by a signal for example.
    """

    code: int
    message: str
    seconds: float
    report: dict[str, object] = field(default_factory=dict)
    killed: tuple[int, ...] = ()


def run(options: Sequence[str], *arguments: str, timeout: float) -> JobResult:
    """Run a module of this package with `mlxdist run`.

    Args:
        options: of `mlxdist run`.
        arguments: the module's name, and its arguments.
        timeout: seconds after which the job is ended.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlxdist-subjob-") as folder:
        path = Path(folder, "outcome.json")
        # No module is to come from the working folder, which others may write to.
        safe = {"PYTHONSAFEPATH": "1"}
        words = [sys.executable, "-m", "mlxdist.cli", "run", *options]
        words += ["--env", "PYTHONSAFEPATH=1"]
        words += ["--report", str(path), "--timeout", str(timeout), "-m", *arguments]
        done = subprocess.run(
            words,
            env={**environment.snapshot(), **safe},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        # The launcher writes no outcome if it can't start the job.
        outcome = json.loads(path.read_text()) if path.exists() else {}
    message = outcome.get("message") or _last_line(done)
    ranks = outcome.get("ranks", ())
    return JobResult(
        code=done.returncode,
        message=message,
        seconds=time.monotonic() - start,
        report=_read_report(done.stdout),
        killed=tuple(rank["rank"] for rank in ranks if rank["state"] == "killed"),
    )


def _read_report(output: str) -> dict[str, object]:
    report: dict[str, object] = {}
    for line in output.splitlines():
        if line.startswith(probe.MARK):
            report |= json.loads(line.removeprefix(probe.MARK))
    return report


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of standard error with text in it, or the exit code."""
    # mpirun pads with zero bytes and draws lines of dashes.
    lines = [x.strip(" \0") for x in done.stderr.splitlines() if x.strip(" -\0")]
    return lines[-1] if lines else f"exit code {done.returncode}"
