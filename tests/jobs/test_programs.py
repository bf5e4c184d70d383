"""Whole programs, as users start them: exit codes, refusals, other backends."""

import json
import socket
import sys

import pytest

from tests.support.jobs import ROOT, clean_environment, mpi_job, run, start

TRAIN = """
import sys
import mlx.core as mx, mlx.optimizers as optim
import mlxdist
world = mlxdist.init(INIT)
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


def train(init=""):
    return TRAIN.replace("INIT", init)


def lines(text):
    return sorted(line for line in text.splitlines() if line.startswith("rank"))


def test_no_mpirun_at_all_ends_with_0(tmp_path):
    (tmp_path / "job.py").write_text(train())
    done = run([sys.executable, "job.py"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert told == [f"rank 0 of 1, {x}" for x in (False, "elements", "tensors")]


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_rank_ends_with_0(ranks, tmp_path):
    done = mpi_job(ranks, train(), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = lines(done.stdout)
    assert [line.split(":")[0] for line in told] == [
        f"rank {rank} of {ranks}, {shard}"
        for rank in range(ranks)
        for shard in (False, "elements", "tensors")
    ]
    assert len({line.split(":")[1] for line in told}) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_ends_with_0_whatever_is_still_held(ranks, tmp_path):
    """Groups, splits and collectives that nobody looked at: FACTS, start-up."""
    script = """
import mlx.core as mx
import mlxdist
world = mlxdist.init()
group, part = world.group, world.split(0)
theirs = mx.distributed.init().split(0) if world.size > 1 else world.group
pending = mx.distributed.all_sum(mx.ones(3), group=theirs)
lazy = mlxdist.average_gradients({"w": mx.ones(3)})
mx.eval(pending)
"""
    done = mpi_job(ranks, script, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_starts_nothing(tmp_path):
    script = """
import mlxdist
from mpi4py import MPI
assert not MPI.Is_initialized()
"""
    (tmp_path / "job.py").write_text(script)
    assert run([sys.executable, "job.py"], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("import mlx.core as mx; mx.distributed.init()", "MLX sees 1"),
        ("import mpi4py.MPI", "MPI was started before mlxdist.init()"),
    ],
)
def test_a_world_that_came_apart_is_an_error(before, told, tmp_path):
    """FACTS: each rank would train alone, with exit code 0."""
    done = mpi_job(2, f"{before}\nimport mlxdist\nmlxdist.init()", folder=tmp_path)
    assert done.returncode != 0
    assert told in done.stderr


def test_mpi4py_may_be_imported_after_mlxdist(tmp_path):
    script = "import mlxdist\nfrom mpi4py import MPI\nassert mlxdist.init().size == 2"
    assert mpi_job(2, script, folder=tmp_path).returncode == 0


def test_strict_wants_more_than_one(tmp_path):
    (tmp_path / "job.py").write_text(train(init="strict=True"))
    done = run([sys.executable, "job.py"], cwd=tmp_path)
    assert done.returncode == 1
    assert "mlxdist run -n 2" in done.stderr


def test_a_launcher_that_mpi_did_not_notice_is_an_error(tmp_path):
    (tmp_path / "job.py").write_text(train())
    env = {"SLURM_STEP_NUM_TASKS": "4"}
    done = run([sys.executable, "job.py"], cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "the launcher started 4 ranks, but MLX sees 1" in done.stderr
    (tmp_path / "job.py").write_text(train(init="strict=False"))
    assert run([sys.executable, "job.py"], cwd=tmp_path, env=env).returncode == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_ends_the_job_with_its_name(rank, tmp_path):
    script = f"""
import mlxdist
world = mlxdist.init()
if world.rank == {rank}:
    raise KeyError("the dog ate it")
world.barrier()
"""
    done = mpi_job(2, script, folder=tmp_path, timeout=60)
    assert done.returncode != 0
    assert f"rank {rank} on {socket.gethostname()} failed" in done.stderr
    assert done.stderr.count("KeyError: 'the dog ate it'") == 1


def test_a_rank_that_leaves_early_ends_the_job(tmp_path):
    script = """
import mlxdist
world = mlxdist.init()
if world.rank == 1:
    world.barrier()
"""
    done = mpi_job(2, script, folder=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "in barrier, step 0 and waits for a rank that has exited" in done.stderr
    assert f"rank 0 on {socket.gethostname()}: exiting" in done.stderr


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_the_ring_backend_gives_the_same_numbers(tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    (tmp_path / "job.py").write_text(train(init="'ring'"))
    ranks = [
        start(
            [sys.executable, "job.py"],
            cwd=tmp_path,
            env={"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    over_mpi = mpi_job(2, train(), folder=tmp_path)
    assert lines("".join(out for out, _ in outputs)) == lines(over_mpi.stdout)
    assert len(lines(over_mpi.stdout)) == 6


def test_the_ring_without_a_launcher_is_a_world_of_one(tmp_path):
    (tmp_path / "job.py").write_text(train(init="'ring'"))
    done = run([sys.executable, "job.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_ring_refuses_what_it_cannot_do(tmp_path):
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
    done = run([sys.executable, "job.py"], cwd=tmp_path)
    assert 'transport="host" works over MPI' in done.stdout


def test_no_environment_variable_is_needed(tmp_path):
    """Not even PATH: MPI is found beside Python."""
    (tmp_path / "job.py").write_text(train())
    bare = {k: clean_environment()[k] for k in ("PYTHONPATH",)}
    done = mpi_job(2, tmp_path / "job.py", folder=tmp_path, env={"PATH": ""})
    assert done.returncode == 0, done.stderr
    assert bare["PYTHONPATH"].startswith(str(ROOT))


def test_a_forked_child_is_not_a_rank(tmp_path):
    """Data loaders fork. How they end is their parent's business."""
    script = """
import os, signal, sys, time, warnings
import mlxdist
world = mlxdist.init(timeout=10)
warnings.simplefilter("ignore", DeprecationWarning)
def fail():
    raise KeyError("of the child")
def told_to():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(9)
def killed():
    os.kill(os.getpid(), signal.SIGKILL)
codes = []
for end in (lambda: sys.exit(0), lambda: sys.exit(3), fail, told_to, killed):
    if os.fork() == 0:
        end()
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
    world.barrier()
print("rank", world.rank, codes, flush=True)
time.sleep(0.6)
"""
    done = mpi_job(2, script, folder=tmp_path, timeout=40)
    assert done.returncode == 0, done.stderr
    codes = [0, 3, 1, -15, -9]
    assert lines(done.stdout) == [f"rank 0 {codes}", f"rank 1 {codes}"]
    assert done.stderr.count("KeyError: 'of the child'") == 2
    assert "the job ends" not in done.stderr


def test_a_part_of_the_world_may_end_earlier(tmp_path):
    script = """
import time, mlxdist
world = mlxdist.init(timeout=20)
part = world.split(world.rank // 2)
for step in range(10 if world.rank < 2 else 1):
    part.mean(1.0)
    time.sleep(0.1)
"""
    done = mpi_job(3, script, folder=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reason_of_a_part_without_rank_0_is_told(tmp_path):
    script = """
import mlxdist
world = mlxdist.init(timeout=20)
part = world.split(min(world.rank, 1))
if world.rank:
    part.mean({"a" if world.rank == 1 else "b": 1.0})
world.barrier()
"""
    done = mpi_job(3, script, folder=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "World.mean refused" in done.stderr
    assert "rank 0: a[]" in done.stderr


def test_a_timeout_is_a_number_of_seconds(tmp_path):
    (tmp_path / "job.py").write_text("""
import mlxdist
for timeout in (0, -1, None, "5", float("nan")):
    try:
        mlxdist.init(timeout=timeout)
    except ValueError as error:
        print(error)
""")
    done = run([sys.executable, "job.py"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("timeout is") == 5


def test_alone_an_exception_is_pythons_own(tmp_path):
    (tmp_path / "job.py").write_text("import mlxdist\nmlxdist.init()\n1 / 0\n")
    done = run([sys.executable, "job.py"], cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
