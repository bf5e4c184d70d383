"""Children of a rank are no ranks: they get a world of one, and the ranks go on.

brainiak#501, ompi#3158: a child that joins MPI as its parent crashes or hangs.
"""

import json
import os
import subprocess
import sys

import pytest

from mlxdist.launcher import environment, launches
from mlxdist.world import identity
from tests.support.jobs import MLXDIST_RUN, clean_environment, mpi_job, mpirun, run
from tests.support.ports import free_ports

CHILD = """
import sys
import mlxdist
world = mlxdist.init()
assert world.mean(3.0) == 3.0
print("child", sys.argv[1], world.size, flush=True)
"""

# Rank 0 starts children in many ways. All ranks go on.
PARENT = """
import json, multiprocessing, os, subprocess, sys
import mlxdist
def child(name):
    try:
        print("child", name, mlxdist.init().size, flush=True)
    except RuntimeError as error:
        print("child", name, "refused:", str(error)[:31], flush=True)
if __name__ == "__main__":
    world = mlxdist.init(timeout=40)
    if world.is_root:
        for name in ("spawn", "fork"):
            process = multiprocessing.get_context(name).Process(
                target=child, args=[name])
            process.start()
            process.join()
            assert process.exitcode == 0
        python = [sys.executable, "child.py"]
        subprocess.run(["sh", "-c", '"$@"; true', "-", *python, "shell"], check=True)
        subprocess.run([*json.loads(sys.argv[1]), "child.py", "job"], check=True)
        for code in (
            "import mlx.core as mx; print('child mlx', mx.distributed.init().size())",
            "from mpi4py import MPI; print('child mpi4py', MPI.COMM_WORLD.size)",
        ):
            subprocess.run([sys.executable, "-c", code], check=True)
        rest = {x: v for x, v in os.environ.items() if not x.startswith("MLXDIST_")}
        subprocess.run([*python, "without MLXDIST_JOINED"], check=True, env=rest)
    assert world.mean(1.0) == 1.0
    assert os.environ["OMPI_COMM_WORLD_RANK"] == str(world.rank)
    print("rank", world.rank, world.size)
"""


def test_children_of_a_rank_get_a_world_of_one(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    job = [*MLXDIST_RUN, "-n", "2"]
    result = mpi_job(2, PARENT, json.dumps(job), folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(result.stdout.splitlines()) == [
        "child fork refused: this process was forked from ra",
        "child job 2",
        "child job 2",
        "child mlx 1",
        "child mpi4py 1",
        "child shell 1",
        "child spawn 1",
        "child without MLXDIST_JOINED 1",
        "rank 0 2",
        "rank 1 2",
    ]


def test_rank_whose_child_has_joined_first_is_refused(tmp_path):
    """MPI would hang for ever, in a call that stops all of Python's threads."""
    script = """
import subprocess, sys, time
import mlxdist
if len(sys.argv) == 1:
    command = [sys.executable, *sys.argv, "child"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "joined 2\\n"
world = mlxdist.init(timeout=20)
print("joined", world.size, flush=True)
time.sleep(600)
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert result.returncode == 1
    assert "has joined as rank" in result.stderr
    assert "call mlxdist.init() before a rank starts other programs" in result.stderr


@pytest.mark.long
def test_ranks_that_exec_after_init_are_refused(tmp_path):
    script = """
import os, sys
import mlxdist
mlxdist.init(timeout=20)
os.execv(sys.executable, [sys.executable, *sys.argv])
"""
    result = mpi_job(1, script, folder=tmp_path)
    assert result.returncode == 1
    assert "replaced itself by another program (exec)" in result.stderr


@pytest.mark.long
def test_programs_that_a_rank_runs_one_after_the_other_join(tmp_path):
    """As from a shell script under mpirun."""
    (tmp_path / "job.py").write_text("import mlxdist\nprint(mlxdist.init().size)\n")
    program = f"{sys.executable} job.py"
    result = run([*mpirun(2), "sh", "-c", f"{program}; {program}"], cwd=tmp_path)
    assert (result.returncode, result.stdout.split()) == (0, ["2"] * 4)


def started_by_mlx(folder, script):
    """Start two processes as mlx.launch does, over the ring."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    (folder / "job.py").write_text(script)
    return [
        subprocess.Popen(
            [sys.executable, "job.py"],
            cwd=folder,
            env=clean_environment({"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def test_init_under_mlx_launch_joins_over_the_ring(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    script = """
import subprocess, sys
import mlxdist
world = mlxdist.init()
mean = world.mean(float(world.rank))
subprocess.run([sys.executable, "child.py", "of ring"], check=True)
print(world.backend, world.size, mean, flush=True)
"""
    jobs = started_by_mlx(tmp_path, script)
    for job in jobs:
        assert job.communicate(timeout=100)[0] == "child of ring 1\nring 2 0.5\n"


def test_init_mpi_under_mlx_launch_raises(tmp_path):
    script = "import mlxdist\nmlxdist.init('mpi')"
    for job in started_by_mlx(tmp_path, script):
        assert "Call mlxdist.init(), or mlxdist.init('ring')" in job.communicate()[0]
        assert job.returncode == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "torchrun started this process as rank 1 of 2, and MLX can't join",
        ),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, "srun --mpi=pmix"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "the launcher started 2 ranks"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "no"}, "no list of hosts"),
    ],
    ids=["torchrun", "srun", "mpiexec", "no hosts"],
)
def test_init_under_another_launcher_raises(variables, message, tmp_path):
    (tmp_path / "job.py").write_text("import mlxdist\nmlxdist.init()\n")
    result = run([sys.executable, "job.py"], cwd=tmp_path, env=variables)
    assert result.returncode == 1
    assert message in result.stderr


@pytest.mark.parametrize("claimed", [None, "parent", "stranger"])
def test_process_whose_rank_is_claimed_joins_only_as_its_child(claimed, monkeypatch):
    """A child that a rank has started before it joined."""
    monkeypatch.setattr(
        environment.os,
        "environ",
        {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "3",
            "PMIX_NAMESPACE": "prterun-h-7@1",
        },
    )
    pids = {None: None, "parent": os.getppid(), "stranger": 1 << 30}
    monkeypatch.setattr(launches, "claim", lambda launch: pids[claimed])
    if claimed == "stranger":
        with pytest.raises(RuntimeError, match="process 1073741824 has joined as rank"):
            identity.find_launch(None, strict=True, rejoins=False)
        return
    launch = identity.find_launch(None, strict=True, rejoins=False)
    assert (launch is None) == (claimed == "parent")
