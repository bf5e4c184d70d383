"""Shared memory of MPI: nothing of it is left where the ranks are killed.

The ranks of a host communicate through files that each of them has mapped. Open MPI
removes them in MPI_Finalize, and mpirun those of a rank that has died. Where mpirun is
killed as well, nobody does. A file that all have mapped needs no name any more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_NAMES = ("sm_segment.", "vader_segment.")  # of Open MPI 5 and 4


def unlink_segments() -> None:
    """Remove the names of MPI's shared memory. Called once all ranks have mapped it.

    On macOS the files are in mpirun's own folder.
    """
    for path in segments():
        with contextlib.suppress(OSError):  # another rank was first
            os.unlink(path)


def segments() -> Iterator[str]:
    """Yield the paths of the shared memory of MPI that this process has mapped."""
    try:
        lines = _MAPS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    # Address, permissions, offset, device and inode come before the path.
    paths = {fields[5] for line in lines if len(fields := line.split(None, 5)) == 6}
    yield from (path for path in paths if os.path.basename(path).startswith(_NAMES))
