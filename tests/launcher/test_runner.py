"""What `launch` and `dry_run` start, and mpirun's own files."""

import os
import socket
import sys
from pathlib import Path

import pytest

from mlxdist import launcher
from mlxdist.launcher import runner
from mlxdist.launcher.job_spec import Job
from tests.support import jobs


def test_dry_run_makes_no_files(main, tmp_path, capsys):
    (tmp_path / "x.py").touch()
    logs, report = tmp_path / "new" / "logs", tmp_path / "report.json"
    options = ["--log-dir", logs, "--max-restarts", "0", "--report", report]
    assert main("run", "-n", "1", "--dry-run", *options, tmp_path / "x.py") == 0
    assert "mpirun -n 1" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["x.py"]


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
