"""What `launch` and `dry_run` start, and mpirun's own files."""

import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from mlxdist import launcher
from mlxdist.launcher import marks, mpirun_command, runner
from mlxdist.launcher.job_spec import Job
from tests.support import jobs


def test_dry_run_makes_no_files(main, tmp_path, capsys):
    (tmp_path / "x.py").touch()
    logs, report = tmp_path / "new" / "logs", tmp_path / "report.json"
    options = ["--log-dir", logs, "--max-restarts", "0", "--report", report]
    assert main("run", "-n", "1", "--dry-run", *options, tmp_path / "x.py") == 0
    assert "mpirun -n 1" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["x.py"]


FILE_OF_RING = {
    "backend": "jaccl-ring",
    "hosts": [
        {"ssh": "10.77.0.1", "ips": [], "rdma": [None, "rdma_en3"]},
        {"ssh": "10.77.0.2", "ips": [], "rdma": ["rdma_en3", None]},
    ],
}


@pytest.mark.parametrize(
    ("options", "outer", "backend", "is_ring"),
    [
        ((), None, "jaccl", True),
        (("--backend", "jaccl"), None, "jaccl", False),
        (("--backend", "mpi"), "nccl", "mpi", False),
        (("--backend", "auto"), "nccl", "jaccl", True),
    ],
)
def test_dry_run_names_the_backend_of_the_option_or_of_the_host_file(
    options, outer, backend, is_ring, main, tmp_path, capsys, monkeypatch
):
    (tmp_path / "x.py").touch()
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps(FILE_OF_RING))
    monkeypatch.setenv(mpirun_command.AGENT_VARIABLE, "ssh")
    if outer:
        monkeypatch.setenv("MLXDIST_BACKEND", outer)
    words = ["run", "--dry-run", *options, "--hostfile", path, tmp_path / "x.py"]
    assert main(*words) == 0
    line = capsys.readouterr().out
    assert f"MLXDIST_BACKEND={backend} " in line
    assert ("JACCL_RING=1" in line) == is_ring
    assert ('"rdma_en3"' in line) == (backend == "jaccl")


@pytest.mark.parametrize(
    ("options", "outer", "message"),
    [
        (("--backend", "jaccl"), None, "jaccl needs the RDMA devices"),
        ((), "gloo", "MLXDIST_BACKEND is 'gloo'; wanted one of mpi, ring"),
    ],
)
def test_run_over_a_backend_that_it_cannot_start_is_refused(
    options, outer, message, main, tmp_path, capsys, monkeypatch
):
    (tmp_path / "x.py").touch()
    if outer:
        monkeypatch.setenv("MLXDIST_BACKEND", outer)
    assert main("run", "-n", "2", "--dry-run", *options, tmp_path / "x.py") == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_launch_succeeds_despite_files_of_a_killed_mpirun(
    run_command, tmp_path, monkeypatch
):
    """mpirun alone exits with 213 if an earlier one had the same process id."""
    host, top = socket.gethostname(), int(Path("/proc/sys/kernel/pid_max").read_text())
    ids = range(os.getpid() + 1, os.getpid() + 1000)
    for pid in (number % top for number in ids):
        folder = tmp_path / f"ompi.{pid}"
        folder.mkdir()
        (folder / f"pmix.{host}.tool").write_text(f"of {pid}\n")
    (tmp_path / "hello.py").write_text("print('hello')")
    command = [*run_command, "-n", "2", "hello.py"]
    done = jobs.run(command, env={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "hello\nhello\n"), done.stderr
    assert not list(tmp_path.glob("mlxdist-run-*"))


def test_prepare_gives_mpirun_a_folder_unless_the_user_did(monkeypatch, tmp_path):
    (tmp_path / "train.py").touch()
    job = Job(1, str(tmp_path / "train.py"))
    words, _ = runner.prepare(job, run_dir="/run/dir")
    assert words[words.index("prte_local_tmpdir_base") + 1] == "/run/dir"
    monkeypatch.setenv("PRTE_MCA_prte_tmpdir_base", "/mine")  # mpirun takes one only
    words, _ = runner.prepare(job, run_dir="/run/dir")
    assert "prte_local_tmpdir_base" not in words


def test_launch_returns_each_ranks_outcome(tmp_path, monkeypatch):
    monkeypatch.delenv("MLXDIST_RESTARTS", raising=False)
    monkeypatch.chdir(tmp_path)
    source = "import os, sys; sys.exit(3 * int(os.environ['OMPI_COMM_WORLD_RANK']))"
    (tmp_path / "x.py").write_text(source)
    outcome = launcher.launch(launcher.Job(2, "x.py"))
    assert outcome.exit_code == 3
    assert [rank.state for rank in outcome.ranks] == ["finished", "failed"]
    assert outcome.ranks[1].reason == "exit 3"
    assert outcome.seconds > 0


class FakeMpirun:
    """One rank in the place of mpirun, which ends at each start in another way.

    Attributes:
        ends: of each start: an exit code, or a signal that the user sends.
        starts: what `world.restarts` is in each of them.
    """

    ends: list[int] = []
    starts: list[int] = []
    timed_out = has_leftover = was_stopped = False
    timeout = None

    def __init__(self, command, variables, *, run_dir, output, **options):
        self.run_dir, self.output = run_dir, output
        self.starts.append(int(variables["MLXDIST_RESTARTS"]))

    def wait(self):
        end = self.ends[len(self.starts) - 1]
        self.output.add(0, f"start {len(self.starts)}\n", "")
        if isinstance(end, signal.Signals):
            os.kill(os.getpid(), end)
            return 1
        if end == 0:
            marks.mark_file(self.run_dir, "done", 0).touch()
        return end


@pytest.mark.parametrize(
    ("ends", "starts", "code"),
    [
        ([0], [0], 0),
        ([3, 0], [0, 1], 0),
        ([3, 4, 5, 6], [0, 1, 2], 5),
        ([2, 0], [0], 2),  # a wrong command line
        ([3, signal.SIGTERM, 0], [0, 1], 143),
    ],
)
def test_launch_starts_a_job_again_until_it_ends_well_or_the_user_ends_it(
    ends, starts, code, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLXDIST_RESTARTS", "0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(runner, "Mpirun", FakeMpirun)
    monkeypatch.setattr(FakeMpirun, "ends", ends)
    monkeypatch.setattr(FakeMpirun, "starts", [])
    (tmp_path / "x.py").touch()
    job = Job(1, str(tmp_path / "x.py"), log_dir=tmp_path / "logs")
    for _ in range(2):  # the second job begins new logs
        FakeMpirun.starts.clear()
        outcome = launcher.launch(job, max_restarts=2)
        assert FakeMpirun.starts == starts
        assert (outcome.exit_code, outcome.restarts) == (code, starts[-1])
        log = (tmp_path / "logs" / "rank-0.log").read_text().splitlines()
        assert log == [f"start {number + 1}" for number in starts]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "x.py"]
