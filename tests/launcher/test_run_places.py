"""`mlxdist run`: where it is started from, what it writes, and what outlives a rank."""

import os
import pwd
import shutil
import signal
import sys

import pytest

from mlxdist import cli
from mlxdist.launcher import command
from tests.support import jobs

RUN = [sys.executable, "-m", "mlxdist.cli", "run"]


def run(folder, source, *options, env=None):
    (folder / "script.py").write_text(source)
    return jobs.run([*RUN, *options, "script.py"], cwd=folder, env=env)


FAILS = """
import os, sys
print("start", os.environ["MLXDIST_RESTARTS"])
sys.exit(int(os.environ["MLXDIST_RESTARTS"] == "0"))
"""


def test_logs_of_the_start_that_failed_are_kept(tmp_path):
    options = ["-n", "2", "--max-restarts", "1", "--log-dir", "logs"]
    for _ in range(2):  # a job of its own begins anew
        ran = run(tmp_path, FAILS, *options)
        assert ran.returncode == 0, ran.stderr
        for rank in range(2):
            lines = (tmp_path / f"logs/rank-{rank}.log").read_text().splitlines()
            assert lines[-1] == "start 1"
            assert lines.count("start 1") == 1
    assert any("start 0" in f.read_text() for f in (tmp_path / "logs").iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_ends_a_log_and_not_the_output(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-0.log").symlink_to("/dev/full")
    source = "for number in range(9): print(number)"
    ran = run(tmp_path, source, "-n", "2", "--log-dir", "logs")
    assert ran.returncode == 0
    assert sorted(ran.stdout.split()) == sorted(2 * [str(n) for n in range(9)])
    assert ran.stderr.count("logs/rank-0.log ends here: No space left on device") == 1
    assert (tmp_path / "logs/rank-1.log").read_text().split() == list("012345678")


LEAVES = """
import os, subprocess
child = subprocess.Popen(["sleep", "30"])
print(os.environ["OMPI_COMM_WORLD_RANK"], child.pid)
"""
IMPATIENT = """
import sys
from mlxdist import cli
from mlxdist.launcher import mpirun
mpirun.FINISH_TIMEOUT = 0.5
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_process_that_outlives_its_rank_makes_no_failure(tmp_path):
    (tmp_path / "script.py").write_text(LEAVES)
    words = ["run", "-n", "2", "--label", "script.py"]
    ran = jobs.run([sys.executable, "-c", IMPATIENT, *words], cwd=tmp_path, timeout=20)
    for line in ran.stdout.splitlines():
        os.kill(int(line.split()[-1]), signal.SIGKILL)
    assert ran.returncode == 0, ran.stderr
    assert "all ranks of 2 finished; a process that one of them" in ran.stderr


def test_without_a_home(tmp_path):
    """As cron starts it; Open MPI can do nothing without."""
    (tmp_path / "script.py").write_text("import os; print(os.environ['HOME'])")
    words = ["env", "-u", "HOME", *RUN, "-n", "1", "script.py"]
    ran = jobs.run(words, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == pwd.getpwuid(os.getuid()).pw_dir


def test_a_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["run", "-n", "1", "x.py"]) == 2
    assert "the current folder is gone; cd to another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--timeline", "."], "--timeline . is a folder; name a file"),
        (["--python", "."], "--python '.': there is no such program here"),
        (["--python", "/tmp"], "--python '/tmp': there is no such program here"),
    ],
)
def test_folders_in_the_place_of_files(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").touch()
    assert cli.main(["run", "-n", "1", *options, "x.py"]) == 2
    assert said in capsys.readouterr().err


def test_without_ssh_no_host_is_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda *_args, **_more: None)
    monkeypatch.delenv(command.AGENT_VARIABLE, raising=False)
    assert cli.main(["run", "-H", "host.invalid,b.invalid", "x.py"]) == 2
    assert "no ssh is on the PATH, by which mpirun reaches" in capsys.readouterr().err
