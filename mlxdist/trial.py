"""Small jobs with a known result on the user's own machines: does it all work?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from . import probe

_PATIENCE = 120  # seconds for a job
# Elementwise math on an accelerator may be fused in other ways for other shapes.
_ROUNDING = 1e-5


class Trial(NamedTuple):
    """One thing that was tried."""

    name: str
    passed: bool
    found: str
    seconds: float


class Ended(NamedTuple):
    """A job's exit code, rank 0's findings, and the launcher's last word."""

    code: int
    told: dict[str, Any]
    said: str
    seconds: float


def job(options: Sequence[str], *arguments: str) -> Ended:
    """Runs a part of the self-test with `mlxdist run`."""
    words = [sys.executable, "-m", "mlxdist.cli", "run", *options]
    words += ["--timeout", str(_PATIENCE), "-m", "mlxdist.selftest", *arguments]
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
    marked = [x for x in done.stdout.splitlines() if x.startswith(probe.MARK)]
    told = json.loads(marked[-1].removeprefix(probe.MARK)) if marked else {}
    lines = [line.strip(" \0") for line in done.stderr.splitlines()]
    said = [line for line in lines if "mlxdist run: " in line] or lines[-1:] or [""]
    return Ended(done.returncode, told, said[-1], took)


def trials(ranks: int, options: Sequence[str]) -> Iterator[Trial]:
    """Each trial as it ends; `options` are those of `mlxdist run`."""
    yield from _equal(job(options, "equal"))
    folder = f"{tempfile.gettempdir()}/mlxdist-test-{os.urandom(6).hex()}"
    ended = job(options, "killed", folder)
    if ranks > 1:
        yield _noticed(ended, ranks - 1)
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


def _noticed(ended: Ended, victim: int) -> Trial:
    named = any(f"{word} {victim}" in ended.said for word in ("rank", "and", ","))
    passed = ended.code != 0 and named and bool(ended.told.get("saved"))
    found = f"exit code {ended.code}: {ended.said.removeprefix('mlxdist run: ')}"
    return Trial("a killed rank is noticed", passed, found, ended.seconds)


def _survived(ended: Ended) -> Trial:
    worst = ended.told.get("checkpoint", float("inf"))
    passed = ended.code == 0 and worst <= _ROUNDING
    found = "every bit" if not worst else f"within {worst:.0e}"
    return Trial(
        "a checkpoint survives it",
        passed,
        found if ended.told else ended.said,
        ended.seconds,
    )
