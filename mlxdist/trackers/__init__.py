"""Reports of a run: averaged over the ranks, in a file, in trackers, on a terminal.

`RunLog` is what a training loop or mlx-lm calls. `report` combines the ranks' values,
`outputs` writes them on rank 0. A new service belongs into `services.py`.
"""

from .report import Report
from .run_log import RunLog
from .tracker import Tracker

__all__ = ["Report", "RunLog", "Tracker"]
