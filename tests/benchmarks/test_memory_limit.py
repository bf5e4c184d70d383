"""Training under a memory limit of the kernel for each rank: real processes are killed.

A bfloat16 model with masters, AdamW. On one rank it needs 16 bytes a parameter.
"""

import sys

import common
import pytest

from tests.support import jobs, memory_group

SMALL, LARGE, TWICE = "16M", "24M", "48M"  # parameters
LIMITS = {SMALL: 345_000_000, LARGE: 515_000_000, TWICE: 515_000_000}  # bytes a rank
KILLED = 137  # 128 + SIGKILL

pytestmark = pytest.mark.skipif(
    memory_group.problem() is not None, reason=str(memory_group.problem())
)


def train(mode, ranks, tensors, folder):
    """Return the exit code of two steps, and how many ranks the kernel killed."""
    program = [sys.executable, str(common.RANK_PROGRAMS / "limit_rank.py")]
    program += [mode, tensors, "bfloat16", "2"]
    paths = {"PYTHONPATH": f"{common.ROOT}:{common.BENCHMARKS}"}
    with memory_group.memory_groups(ranks, LIMITS[tensors]) as groups:
        command = [*jobs.mpirun(ranks), *groups.command(program)]
        done = jobs.run(command, env=paths, cwd=folder)
        assert done.returncode in (0, KILLED), done.stdout + done.stderr
        assert ("took 2 steps" in done.stdout) == (done.returncode == 0)
        return done.returncode, sum(groups.kills)


def test_step_that_one_rank_has_no_memory_for_fits_two_ranks_with_minimize(tmp_path):
    assert train("replicated update", 1, SMALL, tmp_path) == (KILLED, 1)
    assert train("sharded minimize", 2, SMALL, tmp_path) == (0, 0)


@pytest.mark.long
def test_model_of_twice_the_size_fits_two_ranks_with_8_bit_state(tmp_path):
    assert train("replicated update", 1, LARGE, tmp_path) == (KILLED, 1)
    code, kills = train("replicated update", 2, LARGE, tmp_path)
    assert (code, kills > 0) == (KILLED, True)
    assert train("sharded minimize", 2, TWICE, tmp_path)[0] == KILLED
    assert train("minimize, 8-bit state", 2, TWICE, tmp_path) == (0, 0)
