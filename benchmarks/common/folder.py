"""A folder that all ranks of a benchmark share, while it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlxdist


@contextmanager
def shared_folder(world: mlxdist.World, parent: Path) -> Iterator[Path]:
    """Rank 0's temporary folder, which goes when all ranks are done with it."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=parent) as made:
        yield Path(world.control.all_gather_bytes(made.encode())[0].decode())
        world.barrier()
