"""This process as a rank of a job: start-up, the world of ranks, failure handling.

`init` joins the world, `current` returns it. `guard` ends the job when a rank fails,
with `watchdog` and `heartbeat` to find ranks that hang. `timeline` writes a trace of a
job, `postmortem` reads the records of a failed one. `process` and `finalize` start and
end MPI.
"""

from .join import current, init
from .world import World

__all__ = ["World", "current", "init"]
