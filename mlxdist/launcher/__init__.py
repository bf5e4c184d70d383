"""Starting a job with mpirun, on this machine or on several. Standard library only."""

from .hosts import Host
from .runner import launch
from .spec import Job

__all__ = ["Host", "Job", "launch"]
