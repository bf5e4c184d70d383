"""Which launcher gave this process a rank, and which process has taken it."""

import os
import subprocess
import sys

import pytest

from mlxdist.launcher import environment, launches
from mlxdist.launcher.launches import Launch
from tests.support import jobs

MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "3",
    "PMIX_NAMESPACE": "prterun-h-7@1",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.fixture
def variables(monkeypatch):
    """Replace the environment by a dictionary."""
    result: dict[str, str] = {}
    monkeypatch.setattr(environment.os, "environ", result)
    return result


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        (MPIRUN, [("mpirun", "mpi", "1", 3)]),
        (
            {"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "8"},
            [("srun", "mpi", "7", 8)],
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, []),  # sbatch's own script
        ({"PMI_RANK": "0", "PMI_SIZE": "many"}, []),
        ({"MLX_RANK": "1", "MLX_WORLD_SIZE": "2"}, [("mlx.launch", "nccl", "1", 2)]),
        (TORCHRUN, [("torchrun", "", "1", 2)]),
        ({"RANK": "1", "WORLD_SIZE": "2"}, []),  # anybody's names
        (
            {**TORCHRUN, **MPIRUN},
            [("mpirun", "mpi", "1", 3), ("torchrun", "", "1", 2)],
        ),
    ],
)
def test_launches_are_read_from_the_environment(given, expected, variables):
    variables.update(given)
    assert [launch[:4] for launch in launches.launches()] == expected


@pytest.mark.parametrize(("text", "size"), [('[["a:1"], ["b:1"]]', 2), ("\n", 1)])
def test_launches_of_mlx_count_the_hosts(text, size, variables, tmp_path):
    path = tmp_path / "hosts"
    path.write_text(text)
    variables.update({"MLX_RANK": "0", "MLX_HOSTFILE": str(path)})
    (launch,) = launches.launches()
    assert (launch.backend, launch.size) == ("ring", size)


def test_launches_with_an_unreadable_host_file_raise(variables):
    variables.update({"MLX_RANK": "0", "MLX_HOSTFILE": "/nowhere"})
    with pytest.raises(ValueError, match="remove MLX_HOSTFILE from the environment"):
        launches.launches()


def test_note_join_is_read_by_children_of_the_same_rank_only(variables):
    variables.update(MPIRUN)
    (launch,) = launches.launches()
    assert launches.joined_process(launch) is None
    launches.note_join(launch)
    assert launches.joined_process(launch) == os.getpid()
    nested = launch._replace(job="prterun-h-8@1")
    assert launches.joined_process(nested) is None


def test_forget_removes_ranks_and_keeps_the_rest(variables):
    variables.update({**MPIRUN, **TORCHRUN, "PATH": "p", "MLX_RANK": "1"})
    launches.forget()
    assert launches.launches() == []
    names = {*MPIRUN, *TORCHRUN, "PATH", "MLX_RANK"}
    assert names & set(variables) == {"MASTER_ADDR", "MASTER_PORT", "PATH"}


def test_claim_belongs_to_one_process_until_it_ends(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.SERVER_FOLDER, str(tmp_path))
    launch = Launch("mpirun", "mpi", "0", 2, "job@1")
    script = f"""
from mlxdist.launcher import launches
print(launches.claim(launches.Launch(*{list(launch)})), flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "None\n"
        assert launches.claim(launch) == other.pid
        assert launches.claim(launch._replace(rank="1")) is None
        other.communicate("\n")


def test_claim_on_a_full_disk_is_a_lock_without_a_process_id(tmp_path):
    launch = Launch("mpirun", "mpi", "0", 2, "job@1")
    script = f"""
import resource
from mlxdist.launcher import launches
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can grow
print(launches.claim(launches.Launch(*{list(launch)})), flush=True)
"""
    env = {environment.SERVER_FOLDER: str(tmp_path)}
    done = jobs.run([sys.executable, "-c", script], env=env)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert (tmp_path / "mlxdist-1-0").read_text() == ""
