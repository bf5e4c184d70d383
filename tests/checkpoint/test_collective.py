"""Collective error handling: an error of one rank is raised on all of them."""

import msgspec
import pytest

from mlxdist import CheckpointError
from mlxdist.checkpoint.collective import require_success

pytestmark = pytest.mark.mpi


class Numbers(msgspec.Struct):
    numbers: list[int]


def test_require_success_returns_the_reports_of_all_ranks(world):
    all_gather = world.control.all_gather_bytes
    reports = require_success(all_gather, "failed", None, Numbers([world.rank]))
    assert reports == [Numbers([rank]) for rank in range(world.size)]
    assert require_success(all_gather, "failed", None, None) == [None] * world.size


def test_require_success_raises_the_problem_of_one_rank_on_all(world):
    last = world.size - 1
    problem = f"{world.rank} is full \udcff" if world.rank == last else None
    all_gather = world.control.all_gather_bytes
    with pytest.raises(CheckpointError, match=f"(?s)it failed:.*{last} is full"):
        require_success(all_gather, "it failed", problem, None)
