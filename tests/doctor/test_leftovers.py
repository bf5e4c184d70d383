"""launcher/probe and doctor: session folders that killed jobs of Open MPI left."""

import os
import socket
import subprocess
import sys

from mlxdist.launcher import probe
from tests.support.machines import answer, problems

HOST = socket.gethostname().partition(".")[0]


def ended_process():
    """Return the process id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_are_found_and_the_remedy_removes_only_them(tmp_path):
    ended, other = ended_process(), ended_process()
    folders = {
        f"ompi.{ended}": f"pmix.{HOST}.tool",
        f"prted.{ended}": f"pmix.{HOST}.tool.{ended}",
        f"ompi.{os.getpid()}": f"pmix.{HOST}.tool",  # of a running process
        f"prted.{other}": "pmix.another.tool",  # of a host that shares the folder
        "ompi.0": f"pmix.{HOST}.tool",
        f"other.{ended}": f"pmix.{HOST}.tool",
    }
    for folder, file in folders.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    (tmp_path / "prted.999999").symlink_to(tmp_path / f"ompi.{ended}")
    (tmp_path / "prted.999998").touch()
    before = {path.name for path in tmp_path.iterdir()}
    leftovers = probe.leftovers(str(tmp_path))
    names = {f"ompi.{ended}", f"prted.{ended}"}
    assert leftovers == sorted(str(tmp_path / name) for name in names)
    (problem,) = problems(answer("a", is_local=True, leftovers=leftovers))
    assert (problem.check, problem.level) == ("leftovers", "warning")
    message = f"2 folders of killed jobs, such as {leftovers[0]}: "
    assert problem.message.startswith(message)
    subprocess.run(["sh", "-c", problem.remedy], check=True)
    assert before - {path.name for path in tmp_path.iterdir()} == names
    assert probe.leftovers(str(tmp_path)) == []


def test_leftovers_of_another_user_are_not_reported(tmp_path, monkeypatch):
    folder = tmp_path / f"ompi.{ended_process()}"
    folder.mkdir()
    (folder / f"pmix.{HOST}.tool").touch()
    assert probe.leftovers(str(tmp_path)) == [str(folder)]
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert probe.leftovers(str(tmp_path)) == []
