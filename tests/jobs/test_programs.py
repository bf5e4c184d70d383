"""Whole training programs, as users start them, over MPI and over the ring."""

import json
import sys

import pytest

from tests.support.jobs import mpi_job, run, start
from tests.support.ports import free_ports

SHARDS = (False, "elements", "tensors")
TRAIN = """
import sys
import mlx.core as mx, mlx.optimizers as optim
import mlxdist
world = mlxdist.init(*sys.argv[1:])
for shard in (False, "elements", "tensors"):
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(0.1), shard=shard)
    parameters = {"w": mx.ones(7), "b": {"c": mx.zeros((3, 2))}}
    for step in range(3):
        grads = {"w": mx.full((7,), 1.0 + world.rank), "b": {"c": mx.ones((3, 2))}}
        parameters = optimizer.apply_gradients(grads, parameters)
    assert world.identical(parameters)
    state = optimizer.gather_state()
    total = parameters["w"].sum().item()
    print(f"rank {world.rank} of {world.size}, {shard}: {total:.6f}", flush=True)
"""


def check_output(text, ranks):
    """Assert that all ranks trained in all ways to the same parameters."""
    lines = sorted(line for line in text.splitlines() if line.startswith("rank"))
    assert [line.split(":")[0] for line in lines] == [
        f"rank {rank} of {ranks}, {shard}" for rank in range(ranks) for shard in SHARDS
    ]
    assert len({line.split(":")[1] for line in lines}) == 1
    return lines


def test_training_without_mpirun_is_on_one_rank(tmp_path):
    (tmp_path / "job.py").write_text(TRAIN)
    result = run([sys.executable, "job.py"], cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    check_output(result.stdout, ranks=1)


@pytest.mark.parametrize("ranks", [1, 3])
def test_training_with_mpirun_is_on_all_ranks(ranks, tmp_path):
    result = mpi_job(ranks, TRAIN, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    check_output(result.stdout, ranks)


def test_training_over_the_ring_gives_the_numbers_of_mpi(tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    (tmp_path / "job.py").write_text(TRAIN)
    ranks = [
        start(
            [sys.executable, "job.py", "ring"],
            cwd=tmp_path,
            env={"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=100) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    over_ring = check_output("".join(out for out, _ in outputs), ranks=2)
    over_mpi = check_output(mpi_job(2, TRAIN, folder=tmp_path).stdout, ranks=2)
    assert over_ring == over_mpi


def test_training_over_the_ring_alone_is_on_one_rank(tmp_path):
    (tmp_path / "job.py").write_text(TRAIN)
    result = run([sys.executable, "job.py", "ring"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    check_output(result.stdout, ranks=1)


def test_host_transport_over_the_ring_raises(tmp_path):
    script = """
import mlx.optimizers as optim
import mlxdist
world = mlxdist.init("ring")
try:
    mlxdist.DistributedOptimizer(optim.SGD(0.1), transport="host")
except ValueError as error:
    print(error)
"""
    (tmp_path / "job.py").write_text(script)
    result = run([sys.executable, "job.py"], cwd=tmp_path)
    assert 'transport="host" works over MPI' in result.stdout
