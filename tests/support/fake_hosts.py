"""Other hosts on this machine: mpirun's daemons under host names of their own.

No network between them and one file system; the virtual cluster has real wires.
"""

import os
import shutil
import subprocess

import pytest

_AGENT = """\
#!/bin/sh
# What mpirun and mlxdist doctor call in place of ssh: HOST COMMAND ...
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
    """The command that gives a process its own host name; None where it can't."""
    program = shutil.which("unshare")
    if program is None:
        return None
    command = [program] if os.geteuid() == 0 else [program, "--user", "--map-root-user"]
    tried = subprocess.run([*command, "--uts", "hostname", "x"], capture_output=True)
    return None if tried.returncode else " ".join(command)


@pytest.fixture
def hosts(tmp_path):
    """The environment in which any host name is one of this machine's."""
    command = unshare()
    if command is None:
        pytest.skip("no host names of their own here: unshare --uts fails")
    agent = tmp_path / "agent"
    agent.write_text(_AGENT.format(unshare=command))
    agent.chmod(0o755)
    return {"PRTE_MCA_plm_ssh_agent": str(agent)}
