"""The command line of mpirun over hosts."""

import os

from mlxdist.launcher import command, hosts
from mlxdist.launcher.spec import Job


def over(text, env=None, **options):
    job = Job(2, "train.py", hosts=hosts.parse_hosts(text).hosts, **options)
    environment = command.rank_environment(
        job, env or {}, usable_cores=8, token="secret"
    )
    line = command.mpirun_command(
        job,
        mpirun="/mpi/bin/mpirun",
        python="/bin/py",
        usable_cores=1,
        as_root=False,
        forward_stdin=True,
        forwarded=command.forwarded_variables(job, environment),
    )
    return " ".join(line), environment


def test_command_over_hosts():
    line, env = over("mac1,mac2", {"HOME": "/home", "OMP_NUM_THREADS": "3"})
    assert line.startswith("/mpi/bin/mpirun -n 2 --host mac1:1,mac2:1 --bind-to none")
    assert "--map-by slot" in line
    assert "OVERSUBSCRIBE" not in line
    assert "if_include" not in line
    assert "plm_ssh_args -x -oBatchMode=yes -oConnectTimeout=10" in line
    assert "StrictHostKeyChecking" not in line
    names = ("MLXDIST_JOB", "MLXDIST_MARKS", "OMP_NUM_THREADS", "PYTHONUNBUFFERED")
    assert " ".join(f"-x {name}" for name in names) + " /bin/py" in line
    assert "secret" not in line
    assert env["MLXDIST_MARKS"] == "secret"
    assert "MLXDIST_RUN_DIR" not in env
    assert "MKL_NUM_THREADS" not in env  # each host shares its own cores


def test_values_of_variables_are_on_no_command_line():
    line, env = over("a:2", variables=(("KEY", "pass word"),), threads=2)
    assert "-x KEY" in line
    assert "pass" not in line
    assert env["KEY"] == "pass word"
    assert "-x MKL_NUM_THREADS" in line


def test_interface_for_mpi_and_mpirun():
    line, _ = over("a,b", interface="10.0.0.0/24")
    assert "--mca btl_tcp_if_include 10.0.0.0/24" in line
    assert "--prtemca prte_if_include 10.0.0.0/24" in line


def test_another_agent_than_ssh_gets_none_of_its_options(monkeypatch):
    assert command.ssh_command({"PATH": ""}) == ["ssh", *command.SSH_OPTIONS]
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", "/bin/agent -x")
    assert "plm_ssh_args" not in over("a,b")[0]
    assert command.ssh_command(os.environ) == ["/bin/agent", "-x"]


def test_ssh_is_found_by_the_path_of_this_command(tmp_path):
    ssh = tmp_path / "ssh"
    ssh.touch(mode=0o755)
    assert command.ssh_command({"PATH": str(tmp_path)}) == [
        str(ssh),
        *command.SSH_OPTIONS,
    ]
