"""Files of launch/ to copy: host files, the guide's commands, the batch script."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mlxdist import cli
from mlxdist.launcher import hosts

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
GUIDE = (LAUNCH / "README.md").read_text()
HOST_FILES = sorted((LAUNCH / "hosts").iterdir())


def guide_commands():
    """Return the guide's mlxdist command lines, without redirections and comments."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", GUIDE, re.DOTALL))
    quoted = "\n".join(re.findall(r"`([^`\n]+)`", GUIDE))
    lines = re.findall(r"\.venv/bin/mlxdist (.*)", f"{blocks}\n{quoted}")
    return [line.partition("#")[0].partition(" >")[0].strip() for line in lines]


def test_host_files_of_both_formats_have_equal_hosts():
    assert len(HOST_FILES) == 4
    for kind in ("thunderbolt", "ethernet"):
        plain = hosts.read_hosts(LAUNCH / "hosts" / f"{kind}.hosts")
        json = hosts.read_hosts(LAUNCH / "hosts" / f"{kind}.json")
        assert len(plain.hosts) == len(json.hosts) >= 2
        assert all(host.addresses for host in json.hosts)
    assert all(f"(hosts/{path.name})" in GUIDE for path in HOST_FILES)


@pytest.mark.parametrize("line", guide_commands())
def test_guide_command_is_accepted_by_the_parser(line):
    parsed = cli.make_parser().parse_args(shlex.split(line))
    for script in (word for word in shlex.split(line) if word.endswith(".py")):
        assert (LAUNCH.parent / script).exists()
    assert parsed.command in ("run", "doctor", "test", "plan")


def test_guide_uses_run_doctor_test_and_plan():
    commands = {line.split()[0] for line in guide_commands()}
    assert commands == {"run", "doctor", "test", "plan"}


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
        timeout=20,
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
        timeout=20,
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
