"""Files of launch/ to copy: host files, the batch script."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxdist.launcher import host_files

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
GUIDE = (LAUNCH / "README.md").read_text()
HOST_FILES = sorted((LAUNCH / "hosts").iterdir())


def test_host_files_of_both_formats_have_equal_hosts():
    assert len(HOST_FILES) == 4
    for kind in ("thunderbolt", "ethernet"):
        plain = host_files.read_hosts(LAUNCH / "hosts" / f"{kind}.hosts")
        json = host_files.read_hosts(LAUNCH / "hosts" / f"{kind}.json")
        assert len(plain.hosts) == len(json.hosts) >= 2
        assert all(host.addresses for host in json.hosts)
    assert all(f"(hosts/{path.name})" in GUIDE for path in HOST_FILES)


def test_guide_virtual_cluster_starts_without_an_environment():
    """sudo needs an executable file, and clears the environment."""
    (line,) = re.findall(
        r"^sudo (tests/support/virtual_cluster .*)", GUIDE, re.MULTILINE
    )
    script, *words = shlex.split(line)
    assert os.access(LAUNCH.parent / script, os.X_OK)
    command = words[words.index("--") + 1 :]
    assert command[:2] == [".venv/bin/mlxdist", "run"]
    usage = subprocess.run(
        [sys.executable, LAUNCH.parent / script, "--help"],
        env={},
        capture_output=True,
        text=True,
        timeout=100,
    ).stdout
    assert all(word in usage for word in words[: words.index("--")] if word[0] == "-")


def sbatch(tmp_path, *arguments, **variables):
    """Run the batch script with substitutes for scontrol and mlxdist."""
    for folder in ("slurm", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("slurm/scontrol", '[ "$*" = "show hostnames n[1-3]" ] && seq -f n%.0f 3'),
        (".venv/bin/mlxdist", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/slurm:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n[1-3]",
        **variables,
    }
    return subprocess.run(
        ["bash", LAUNCH / "slurm.sh", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_batch_script_runs_one_rank_per_task_on_all_nodes(tmp_path):
    done = sbatch(tmp_path, "my script.py", "--steps", "9")
    command = ["run", "-H", "n1:1,n2:1,n3:1", "my script.py", "--steps", "9"]
    assert done.stdout.splitlines() == command, done.stderr
    done = sbatch(tmp_path, "x.py", SLURM_NTASKS_PER_NODE="2")
    assert "n1:2,n2:2,n3:2" in done.stdout


def test_batch_script_without_script_or_venv_exits_with_2(tmp_path):
    done = sbatch(tmp_path)
    assert (done.returncode, "no script given" in done.stderr) == (2, True)
    done = sbatch(tmp_path, "x.py", SLURM_SUBMIT_DIR="/")
    assert (done.returncode, "launch/setup" in done.stderr) == (2, True)


@pytest.fixture
def checkout(tmp_path):
    """A checkout without .venv, in which nothing can be installed."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    shutil.copy(LAUNCH.parent / "pyproject.toml", tmp_path)

    def start(script, *arguments):
        done = subprocess.run(
            [tmp_path / "launch" / script, *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHON": "/no/python"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "launch",
            "pyproject.toml",
        ]
        return done

    return start


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", ["quickstart", "setup", "test"])
def test_script_prints_its_help_without_an_installation(checkout, script, option):
    done = checkout(script, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: launch/{script} ")


def test_quickstart_help_lists_the_options_of_its_script(checkout):
    script = [sys.executable, LAUNCH / "train_lm.py", "--help"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=100)
    names = set(re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE))
    listed = re.findall(
        r"^  (--[a-z-]+)  +\w", checkout("quickstart", "-h").stdout, re.M
    )
    assert sorted(names) == sorted(listed)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("quickstart", ["--steps", "3", "--nope=1"], "there is no option --nope"),
        ("quickstart", ["--ranks"], "--ranks needs a number"),
        ("quickstart", ["--ranks", "0"], "--ranks: found 0, wanted 1 or more"),
        ("quickstart", ["--seed", "-1"], "PYTHON=/no/python is not a Python"),
        ("setup", ["--nope"], "there is no option --nope"),
        ("setup", ["tests"], "tests is not an extra; wanted one of: cuda"),
        ("setup", ["test", "plot"], "PYTHON=/no/python is not a Python"),
        ("test", ["--nope"], "unknown argument --nope"),
        ("test", ["--fast", "--", "--nope"], "PYTHON=/no/python is not a Python"),
    ],
)
def test_script_refuses_arguments_before_it_installs(
    checkout, script, arguments, message
):
    done = checkout(script, *arguments)
    assert done.returncode == (1 if script == "setup" or "PYTHON=" in message else 2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
