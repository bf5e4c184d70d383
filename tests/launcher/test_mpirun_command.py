"""mpirun's command line and the ranks' environment, without starting anything."""

import os

import pytest

from mlxdist.launcher import cores, data_plane, hosts, mpirun_command
from mlxdist.launcher.data_plane import DataPlane
from mlxdist.launcher.hosts import Host
from mlxdist.launcher.job_spec import Job


def command_line(job, *, usable_cores=8, forward_stdin=True, **options):
    return mpirun_command.mpirun_command(
        job,
        mpirun="/mpi/bin/mpirun",
        python="/bin/py",
        usable_cores=usable_cores,
        as_root=options.pop("as_root", False),
        forward_stdin=forward_stdin,
        **options,
    )


def local_line(ranks, *, arguments=(), **options):
    return command_line(Job(ranks, "train.py", arguments=arguments), **options)


def local_environment(ranks=2, variables=None, *, usable_cores=8, columns=None, **job):
    return mpirun_command.rank_environment(
        Job(ranks, "train.py", **job),
        variables or {},
        usable_cores=usable_cores,
        run_dir="/run",
        columns=columns,
    )


def over_hosts(names, outer=None, **options):
    """The command line as a text, and the environment, of 2 ranks over hosts."""
    job = Job(2, "train.py", hosts=hosts.parse_hosts(names).hosts, **options)
    environment = mpirun_command.rank_environment(
        job, outer or {}, usable_cores=8, token="secret"
    )
    forwarded = mpirun_command.forwarded_variables(job, environment)
    line = command_line(job, usable_cores=1, forwarded=forwarded)
    return " ".join(line), environment


# On this machine


def test_mpirun_command_on_one_machine_starts_rank_main_with_the_script():
    line = local_line(4)
    assert line[:7] == [
        *("/mpi/bin/mpirun", "-n", "4", "--host", "localhost:4", "--bind-to", "none")
    ]
    assert line[7] == "/bin/py"
    assert line[8].endswith("rank_main.py")
    assert os.path.isabs(line[8])
    assert line[9:] == [os.path.abspath("train.py")]


def test_mpirun_command_as_root_alone_allows_root():
    assert "--allow-run-as-root" not in local_line(2)
    assert "--allow-run-as-root" in local_line(2, as_root=True)


def test_mpirun_command_with_more_ranks_than_cores_oversubscribes():
    flags = ["--map-by", ":OVERSUBSCRIBE", "--mca", "mpi_yield_when_idle", "1"]
    assert not set(flags) & set(local_line(8, usable_cores=8)) - {"1"}
    assert " ".join(flags) in " ".join(local_line(9, usable_cores=8))


def test_mpirun_command_without_a_terminal_forwards_no_input():
    assert "--stdin" not in local_line(2)
    assert "--stdin none" in " ".join(local_line(2, forward_stdin=False))


def test_mpirun_command_never_contains_the_scripts_arguments():
    # mpirun rewrites some of them as its own, and ":" starts another program.
    assert local_line(2, arguments=(":", "--map-by", "x")) == local_line(2)


@pytest.mark.parametrize(
    ("ranks", "usable", "threads"), [(2, 8, "4"), (3, 8, "2"), (9, 8, "1"), (1, 1, "1")]
)
def test_rank_environment_shares_cores_among_the_ranks(ranks, usable, threads):
    environment = local_environment(ranks, usable_cores=usable)
    assert {environment[name] for name in cores.THREAD_VARIABLES} == {threads}


def test_rank_environment_keeps_the_users_thread_variables():
    environment = local_environment(2, {"OMP_NUM_THREADS": "3"})
    assert {environment[name] for name in cores.THREAD_VARIABLES} == {"3"}
    environment = local_environment(2, {"MKL_NUM_THREADS": "3"})
    assert environment["MKL_NUM_THREADS"] == "3"
    assert environment["OMP_NUM_THREADS"] == "4"


def test_rank_environment_with_threads_option_overrides_the_users_variables():
    environment = local_environment(2, {"OMP_NUM_THREADS": "3"}, threads=5)
    assert {environment[name] for name in cores.THREAD_VARIABLES} == {"5"}


def test_rank_environment_outside_a_job_keeps_open_mpis_settings():
    settings = {"OMPI_MCA_btl_tcp_if_include": "en0", "HOME": "/home"}
    assert settings.items() <= local_environment(2, settings).items()


def test_rank_environment_inside_a_job_drops_the_outer_launchers_variables():
    outer = {"OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1", "HOME": "/home"}
    environment = local_environment(2, outer)
    assert environment["HOME"] == "/home"
    assert not [name for name in environment if name.startswith(("OMPI_", "PMIX_"))]


def test_rank_environment_names_a_terminal_only_if_there_is_one():
    assert "MLXDIST_TERMINAL" not in local_environment(2, {"MLXDIST_TERMINAL": "1"})
    environment = local_environment(2, columns=97)
    assert environment["MLXDIST_TERMINAL"] == "1"
    assert environment["MLXDIST_COLUMNS"] == "97"


# Over hosts


def test_mpirun_command_over_hosts_names_slots_and_forwarded_variables():
    line, environment = over_hosts(
        "mac1,mac2", {"HOME": "/home", "OMP_NUM_THREADS": "3"}
    )
    assert line.startswith("/mpi/bin/mpirun -n 2 --host mac1:1,mac2:1 --bind-to none")
    assert "--map-by slot" in line
    assert "OVERSUBSCRIBE" not in line
    assert "if_include" not in line
    assert f"plm_ssh_args {' '.join(mpirun_command.SSH_OPTIONS)}" in line
    assert "StrictHostKeyChecking" not in line
    names = ("MLXDIST_JOB", "MLXDIST_MARKS", "OMP_NUM_THREADS", "PYTHONUNBUFFERED")
    assert " ".join(f"-x {name}" for name in names) + " /bin/py" in line
    assert "secret" not in line
    assert environment["MLXDIST_MARKS"] == "secret"
    assert "MLXDIST_RUN_DIR" not in environment
    assert "MKL_NUM_THREADS" not in environment  # each host shares its own cores


def test_mpirun_command_never_contains_the_values_of_variables():
    line, environment = over_hosts("a:2", variables=(("KEY", "pass word"),), threads=2)
    assert "-x KEY" in line
    assert "pass" not in line
    assert environment["KEY"] == "pass word"
    assert "-x MKL_NUM_THREADS" in line


def test_mpirun_command_with_an_interface_restricts_mpi_and_mpirun():
    line, _ = over_hosts("a,b", interface="10.0.0.0/24")
    assert "--mca btl_tcp_if_include 10.0.0.0/24" in line
    assert "--prtemca prte_if_include 10.0.0.0/24" in line


def test_mpirun_command_with_a_custom_agent_passes_no_ssh_options(monkeypatch):
    monkeypatch.setenv(mpirun_command.AGENT_VARIABLE, "/bin/agent -x")
    assert "plm_ssh_args" not in over_hosts("a,b")[0]
    assert mpirun_command.ssh_command() == ["/bin/agent", "-x"]


def test_ssh_command_finds_ssh_on_the_path(tmp_path):
    assert mpirun_command.ssh_command({"PATH": ""}) == [
        "ssh",
        *mpirun_command.SSH_OPTIONS,
    ]
    ssh = tmp_path / "ssh"
    ssh.touch(mode=0o755)
    expected = [str(ssh), *mpirun_command.SSH_OPTIONS]
    assert mpirun_command.ssh_command({"PATH": str(tmp_path)}) == expected


@pytest.mark.parametrize(("code", "hosts_listed"), [(0, []), (255, ["b"])])
def test_agent_script_records_the_hosts_where_the_agent_fails(
    code, hosts_listed, tmp_path, monkeypatch
):
    agent = tmp_path / "agent-of-user"
    agent.write_text(f"#!/bin/sh\nexit {code}\n")
    agent.chmod(0o755)
    monkeypatch.setenv(mpirun_command.AGENT_VARIABLE, str(agent))
    job = Job(2, "train.py", hosts=hosts.parse_hosts("a,b").hosts)
    script = mpirun_command.write_agent_script(job, str(tmp_path))
    assert os.waitstatus_to_exitcode(os.system(f"{script} -x b prted")) == code
    assert mpirun_command.failed_hosts(str(tmp_path)) == hosts_listed


def test_rank_environment_has_the_data_plane_and_none_of_an_outer_job():
    outer = {"OMPI_COMM_WORLD_RANK": "0", "MLXDIST_BACKEND": "jaccl"}
    outer["MLXDIST_DATA_PLANE"] = "{}"
    _, environment = over_hosts("a,b", outer=outer)
    assert data_plane.data_plane_of(environment) == DataPlane()
    assert "MLXDIST_DATA_PLANE" not in environment
    wanted = DataPlane("ring", (("10.0.0.1",), ("10.0.0.2",)))
    job = Job(
        2,
        "train.py",
        hosts=(Host("a", 1, ("10.0.0.1",)), Host("b", 1, ("10.0.0.2",))),
        backend="ring",
    )
    environment = mpirun_command.rank_environment(job, {}, usable_cores=8)
    assert data_plane.data_plane_of(environment) == wanted
    forwarded = mpirun_command.forwarded_variables(job, environment)
    assert {"MLXDIST_BACKEND", "MLXDIST_DATA_PLANE"} <= set(forwarded)
