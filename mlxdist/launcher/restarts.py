"""Starts a job again after a rank has died."""

from __future__ import annotations

import os
import sys

from .runner import Stopped, launch
from .spec import Job

VARIABLE = "MLXDIST_RESTARTS"  # how often, for the ranks


def launch_again(job: Job, restarts: int) -> int:
    """Runs a job, up to `restarts` times more where it fails; the last exit code.

    Not where the user ended it. What the ranks do differently the second time is
    theirs: `load_checkpoint`, since `world.restarts` is above 0.
    """
    for restart in range(restarts + 1):
        os.environ[VARIABLE] = str(restart)
        code = launch(job, again=restart > 0)
        if code == 0 or isinstance(code, Stopped) or restart == restarts:
            break
        told = f"starts it again, {restart + 1} of {restarts}"
        print(f"mlxdist run: {told}.", file=sys.stderr, flush=True)
    return int(code)
