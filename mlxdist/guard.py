"""A rank that fails ends the job, with its name.

MPI alone leaves the other ranks waiting for ever when one raises or leaves early.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

# Abort has been seen to hang where two ranks aborted together.
_ABORT_PATIENCE = 1.5


class Guard:
    """Ends the whole job when this rank fails. Made once, by `mlxdist.init()`.

    Args:
        mpi: mpi4py's MPI module; None where the backend is another one.
        comm: a communicator of the guard's own, for the last barrier.
        rank: this process's rank, and `host` its machine, for the message.
        timeout: seconds that a rank which is done waits for the others.
    """

    def __init__(self, mpi: Any, comm: Any, *, rank: int, host: str, timeout: float):
        self._mpi = mpi
        self._comm = comm
        self._who = f"rank {rank} on {host}"
        self._timeout = timeout
        self._failed = False

    def install(self) -> None:
        self._previous_hook = sys.excepthook
        sys.excepthook = self._on_exception
        atexit.register(self._at_exit)

    def _on_exception(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        self.abort(f"failed, the job ends:\n{text}")

    def abort(self, reason: str, code: int = 1) -> None:
        """Says why on stderr and ends every rank of the job."""
        self._failed = True
        sys.stdout.flush()
        print(f"mlxdist: {self._who} {reason}", file=sys.stderr, flush=True)
        if self._mpi is not None:
            last_resort = threading.Timer(_ABORT_PATIENCE, os._exit, (code,))
            last_resort.daemon = True
            last_resort.start()
            self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def _at_exit(self) -> None:
        if self._comm is None or self._failed:
            return
        everyone = self._comm.Ibarrier()
        deadline = time.monotonic() + self._timeout
        pause = 1e-4
        while not everyone.Test():
            if time.monotonic() > deadline:
                self.abort(
                    f"has finished, but others are still at work {self._timeout:g} s "
                    "later. Either they wait for this rank, which took fewer steps "
                    "than they, or they need longer: mlxdist.init(timeout=...)"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
