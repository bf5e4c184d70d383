"""Jobs under mpirun, on this machine or on several.

Standard library only: it imports neither MLX nor any other package of mlxdist.
"""

from .hosts import Host
from .job_spec import Job
from .outcome import Outcome
from .runner import launch

__all__ = ["Host", "Job", "Outcome", "launch"]
