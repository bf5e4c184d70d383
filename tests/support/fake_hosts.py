"""Other hosts on this machine: mpirun's daemons under host names of their own.

They share this machine's network and files. Use the virtual cluster for real wires.
"""

import os
import shutil
import subprocess

import pytest

_AGENT = """\
#!/bin/sh
# Stands in for ssh, for mpirun and mlxdist doctor: HOST COMMAND ...
host=$1
shift
echo "$host" >>"$(dirname "$0")/reached"
case " $UNREACHABLE " in *" $host "*)
    echo "ssh: connect to host $host port 22: No route to host" >&2
    exit 255 ;;
esac
exec env -i PATH=/usr/bin:/bin HOME="$HOME" {unshare} --uts sh -c \
    'hostname "$0"; exec sh -c "$1"' "${{SAME_NAME:-$host}}" "$*"
"""


def unshare():
    """Return the command that gives a process its own host name; None if it can't."""
    program = shutil.which("unshare")
    if program is None:
        return None
    command = [program] if os.geteuid() == 0 else [program, "--user", "--map-root-user"]
    trial = subprocess.run([*command, "--uts", "hostname", "x"], capture_output=True)
    return None if trial.returncode else " ".join(command)


def environment(folder):
    """Return variables with which any host name is one of this machine's.

    The file `reached` in `folder` gets the name of each host that is reached. Skips the
    test where processes can't have host names of their own.
    """
    command = unshare()
    if command is None:
        pytest.skip("processes can't have host names of their own: unshare --uts fails")
    agent = folder / "agent"
    agent.write_text(_AGENT.format(unshare=command))
    agent.chmod(0o755)
    # By its name, because mpirun splits a path at spaces.
    path = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    return {"PRTE_MCA_plm_ssh_agent": agent.name, "PATH": path}


@pytest.fixture
def hosts(tmp_path):
    """The environment in which any host name is one of this machine's."""
    return environment(tmp_path)
