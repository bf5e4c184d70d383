"""What launch/ gives to copy: host files, the guide's commands, the batch script."""

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


def commands():
    """The guide's command lines of mlxdist, without what the shell does with them."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", GUIDE, re.DOTALL))
    quoted = "\n".join(re.findall(r"`([^`\n]+)`", GUIDE))
    found = re.findall(r"\.venv/bin/mlxdist (.*)", f"{blocks}\n{quoted}")
    return [line.partition("#")[0].partition(" >")[0].strip() for line in found]


def test_host_files_are_both_formats_of_the_same_hosts():
    assert len(HOST_FILES) == 4
    for kind in ("thunderbolt", "ethernet"):
        plain = hosts.read_hosts(LAUNCH / "hosts" / f"{kind}.hosts")
        json = hosts.read_hosts(LAUNCH / "hosts" / f"{kind}.json")
        assert len(plain.hosts) == len(json.hosts) >= 2
        assert all(host.addresses for host in json.hosts)
    assert all(f"(hosts/{path.name})" in GUIDE for path in HOST_FILES)


@pytest.mark.parametrize("line", commands())
def test_the_guide_s_commands_are_ones(line):
    parsed = cli.make_parser().parse_args(shlex.split(line))
    for script in (word for word in shlex.split(line) if word.endswith(".py")):
        assert (LAUNCH.parent / script).exists()
    assert parsed.command in ("run", "doctor", "test", "plan")


def test_the_guide_has_all_commands():
    told = {line.split()[0] for line in commands()}
    assert told == {"run", "doctor", "test", "plan"}


def test_the_guide_s_cluster_without_macs():
    """sudo starts what can be executed, and hands no environment on."""
    (line,) = re.findall(
        r"^sudo (tests/support/virtual_cluster .*)", GUIDE, re.MULTILINE
    )
    script, *words = shlex.split(line)
    assert os.access(LAUNCH.parent / script, os.X_OK)
    command = words[words.index("--") + 1 :]
    assert command[:2] == [".venv/bin/mlxdist", "run"]
    told = subprocess.run(
        [sys.executable, LAUNCH.parent / script, "--help"],
        env={},
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout
    assert all(word in told for word in words[: words.index("--")] if word[0] == "-")


def slurm(tmp_path, *arguments, **variables):
    """Runs the batch script with stand-ins for scontrol and mlxdist."""
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


def test_the_batch_script(tmp_path):
    ran = slurm(tmp_path, "my script.py", "--steps", "9")
    wanted = ["run", "-H", "n1:1,n2:1,n3:1", "my script.py", "--steps", "9"]
    assert ran.stdout.splitlines() == wanted, ran.stderr
    ran = slurm(tmp_path, "x.py", SLURM_NTASKS_PER_NODE="2")
    assert "n1:2,n2:2,n3:2" in ran.stdout
    assert slurm(tmp_path).returncode == 2
    (tmp_path / ".venv/bin/mlxdist").unlink()
    ran = slurm(tmp_path, "x.py", SLURM_SUBMIT_DIR="/")
    assert (ran.returncode, "launch/setup" in ran.stderr) == (2, True)
