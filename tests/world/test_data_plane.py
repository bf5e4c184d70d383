"""Groups of MLX over other wires than MPI, which MPI sets up."""

import json
import os
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import mlxdist
from mlxdist.comm import MismatchError
from mlxdist.launcher.data_plane import DataPlane
from mlxdist.world.data_plane import (
    connect,
    jaccl_matrix,
    nccl_variables,
    ring_problem,
    side_channel,
)
from tests.support import netns
from tests.support.cluster import VirtualCluster
from tests.support.jobs import ROOT, run

SPMD = pytest.mark.mpi(min_size=2)
DEVICES = (((), ("rdma_en3",)), (("rdma_en4", "rdma_en5"), ()))


@pytest.mark.parametrize("backend", ["gloo", "any", "jaccl-ring", "", 3], ids=str)
def test_init_of_an_unknown_backend_raises(backend):
    with pytest.raises(ValueError, match=r"backend is .*; wanted one of mpi, ring"):
        mlxdist.init(backend)


def test_nccl_variables_name_rank_0_for_each_rank():
    assert nccl_variables(2, 4, "10.0.0.1", 4711) == {
        "NCCL_HOST_IP": "10.0.0.1",
        "NCCL_PORT": "4711",
        "MLX_RANK": "2",
        "MLX_WORLD_SIZE": "4",
    }


def test_jaccl_matrix_is_null_where_there_is_no_cable():
    matrix = jaccl_matrix(DEVICES)
    assert matrix == [[None, ["rdma_en3"]], [["rdma_en4", "rdma_en5"], None]]


def test_ring_of_hosts_with_unequal_numbers_of_addresses_is_a_problem():
    assert ring_problem([["a:1"], ["b:1"]]) is None
    assert "the ranks have [1, 2]" in ring_problem([["a:1"], ["b:1", "b:2"]])


@pytest.fixture
def jaccl(monkeypatch):
    """MLX's `init` over jaccl, which no machine of the tests has: it calls the factory.

    Returns what each call was given: the environment, the matrix, and what the
    all-gather returned.
    """
    calls = []

    def init(*, strict, backend, all_gather_factory):
        assert (strict, backend) == (True, "jaccl")
        rank = int(os.environ["JACCL_RANK"])
        matrix = json.loads(Path(os.environ["JACCL_IBV_DEVICES"]).read_text())
        gather = all_gather_factory(rank, len(matrix))
        calls.append((rank, matrix, gather(bytes([rank]) * 3, 3)))
        return mx.distributed.init()

    monkeypatch.setattr(mx.distributed, "init", init)
    monkeypatch.setattr(mx.distributed, "is_available", lambda _: True)
    yield calls
    assert not {"JACCL_RANK", "JACCL_IBV_DEVICES"} & os.environ.keys()


@SPMD
def test_jaccl_gathers_over_mpi_and_leaves_no_variables(world, jaccl, monkeypatch):
    group = world.group
    fake_init = mx.distributed.init

    def init(**options):
        return group if not options else fake_init(**options)

    monkeypatch.setattr(mx.distributed, "init", init)
    row = tuple(() if x == 0 else (f"rdma_en{x}",) for x in range(world.size))
    plane = DataPlane("jaccl", devices=(row,) * world.size)
    assert connect("jaccl", world.control, plane, one_host=True) is group
    gathered = b"".join(bytes([rank]) * 3 for rank in range(world.size))
    assert jaccl == [(world.rank, jaccl_matrix(plane.devices), gathered)]


@SPMD
@pytest.mark.usefixtures("jaccl")
@pytest.mark.parametrize(
    ("plane", "message"),
    [
        (DataPlane("jaccl"), "start the job with `mlxdist run` and a host file"),
        (DataPlane("jaccl", devices=(((),),)), "RDMA devices of 1 ranks"),
    ],
)
def test_jaccl_without_a_matrix_of_all_ranks_raises_on_all(plane, message, world):
    with pytest.raises(MismatchError, match=message):
        connect("jaccl", world.control, plane, one_host=True)


def test_side_channel_with_other_numbers_of_ranks_raises(world):
    with pytest.raises(MismatchError, match=f"and MPI rank {world.rank} of"):
        side_channel(world.control)(world.rank + 1, world.size + 1)


@SPMD
def test_backend_that_mlx_lacks_on_one_rank_raises_on_all(world, monkeypatch):
    lacks = world.rank == world.size - 1
    monkeypatch.setattr(mx.distributed, "is_available", lambda _: not lacks)
    message = f"rank {world.size - 1}: this MLX has no 'nccl' backend"
    with pytest.raises(MismatchError, match=message):
        connect("nccl", world.control, DataPlane(), one_host=True)


@SPMD
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.0.2.1", r"rank 0: OSError: .*: 192\.0\.2\.1"),
        ("127.0.0.1", "each must have equally many: give"),
    ],
    ids=["of another host", "two of one host"],
)
def test_ring_with_a_wrong_address_raises_on_all(address, message, world):
    addresses = [("127.0.0.1",)] * world.size
    addresses[0] = (address,) if "192" in address else (address, address)
    plane = DataPlane("ring", addresses=tuple(addresses))
    with pytest.raises(MismatchError, match=message):
        connect("ring", world.control, plane, one_host=True)


@SPMD
@pytest.mark.parametrize("backend", ["ring", "nccl"])
def test_addresses_of_some_hosts_alone_raise_on_all(backend, world, monkeypatch):
    monkeypatch.setattr(mx.distributed, "is_available", lambda _: True)
    addresses = (("127.0.0.1",),) * (world.size - 1)
    plane = DataPlane(backend, addresses=(*addresses, ()))
    message = rf"no `ips` for the hosts of ranks \[{world.size - 1}\].*or none"
    with pytest.raises(MismatchError, match=message):
        connect(backend, world.control, plane, one_host=True)


@SPMD
def test_ring_with_addresses_of_other_ranks_than_these_raises(world):
    plane = DataPlane("ring", addresses=(("127.0.0.1",),))
    with pytest.raises(MismatchError, match=f"1 ranks, and there are {world.size}"):
        connect("ring", world.control, plane, one_host=True)


# The second network of each host has the same address everywhere, as containers' have.
ON_HOSTS = """
import subprocess
import mlx.core as mx
import mlxdist
commands = ["link add docker0 type dummy", "link set docker0 up"]
for command in [*commands, "address add 172.17.0.1/16 dev docker0"]:
    subprocess.run(["ip", *command.split()], capture_output=True)
world = mlxdist.init("ring", timeout=20)
gradients = {"w": mx.full((1003,), world.rank + 1.0)}
mean = mlxdist.average_gradients(gradients, world=world)
print(world.backend, world.size, mean["w"][-1].item(), world.mean(float(world.rank)))
"""


@pytest.mark.long
@pytest.mark.skipif(netns.problem() is not None, reason=str(netns.problem()))
def test_init_ring_on_hosts_with_several_networks_joins_over_the_common_one(tmp_path):
    (tmp_path / "job.py").write_text(ON_HOSTS)
    program = [sys.executable, str(tmp_path / "job.py")]
    path = {"PYTHONPATH": str(ROOT)}
    with VirtualCluster(2) as cluster:
        result = run(cluster.mpirun(4, program, environment=path), timeout=100)
    assert (result.returncode, result.stdout) == (0, "ring 4 2.5 1.5\n" * 4)


RING = """
import os
import mlx.core as mx
import mlxdist
world = mlxdist.init("ring", timeout=20)
assert not {"MLX_RANK", "MLX_HOSTFILE"} & os.environ.keys()
total = mx.distributed.all_sum(mx.ones(3), group=world.group)
part = world.split(0)
print(world.backend, world.size, world.transport("auto", sharded=True).name, end=" ")
print(world.control.name, total.tolist(), part.backend, part.mean(float(world.rank)))
"""


def test_init_ring_under_mpirun_has_its_data_over_ring_and_control_over_mpi(mpi_job):
    result = mpi_job(3, RING)
    assert (result.returncode, result.stderr) == (0, "")
    line = "ring 3 native host [3.0, 3.0, 3.0] mpi 1.0"
    assert result.stdout.split("\n") == [line, line, line, ""]
