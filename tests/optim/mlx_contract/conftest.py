"""MLX's own optimizer tests run on 1 and 2 ranks; on more of them they are long."""

from pathlib import Path

import pytest
from mpi4py import MPI

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items):
    if MPI.Is_initialized() and MPI.COMM_WORLD.Get_size() > 2:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.long)
