"""`mlxdist run` over hosts of their own names, and hosts that fail."""

import json
import re
import sys

import pytest

from tests.support import jobs

SHOW = """
import json, os, socket, sys
names = ("OMPI_COMM_WORLD_RANK", "KEY", "OMP_NUM_THREADS")
print(json.dumps([socket.gethostname(), *map(os.environ.get, names), sys.argv[1:],
                  os.getcwd()]))
print("to standard error", end="", file=sys.stderr)
"""


@pytest.fixture
def run_on_hosts(run, hosts):
    """Runs a script's source on 2 ranks of host h1 and one of h2."""

    def start(source, *arguments, options=(), names="h1:2,h2", env=None):
        env = {**hosts, "OMP_NUM_THREADS": "3", **(env or {})}
        return run(source, *arguments, options=["-H", names, *options], env=env)

    return start


def test_ranks_on_hosts_find_arguments_variables_and_folder(run_on_hosts, tmp_path):
    arguments = ["--map-by", ":", "", "a b", "$HOME", "'\"", "é\n;"]
    done = run_on_hosts(SHOW, *arguments, options=["--env", "KEY=a; $b\n'\"é"])
    assert done.returncode == 0, done.stderr
    ranks = sorted(map(json.loads, done.stdout.splitlines()))
    common = ["a; $b\n'\"é", "3", arguments, str(tmp_path)]
    assert ranks == [
        [h, r, *common] for h, r in (("h1", "0"), ("h1", "1"), ("h2", "2"))
    ]
    # Nothing is left of the lines by which the ranks say that they have finished.
    stderr = re.sub(r"^\[.*\] plm:ssh: Warning: setpgid.*\n", "", done.stderr)
    assert stderr == 3 * "to standard error"


def test_ranks_on_hosts_find_the_data_plane_of_mlx_host_file(run, hosts, tmp_path):
    rows = [[None, "rdma_en3"], ["rdma_en4", None]]
    entries = [
        {"ssh": f"h{i}", "ips": [f"10.0.0.{i}"], "rdma": row}
        for i, row in enumerate(rows, 1)
    ]
    content = {"backend": "jaccl-ring", "envs": ["MLX_MAX_X=7"], "hosts": entries}
    (tmp_path / "hosts.json").write_text(json.dumps(content))
    source = (
        "import os\nfrom mlxdist.launcher.data_plane import data_plane_of\n"
        "plane = data_plane_of(os.environ)\n"
        "print(*plane.addresses, *plane.devices, plane.backend, sep='|', end='|')\n"
        "print(os.environ['MLX_MAX_X'], os.environ['JACCL_RING'])"
    )
    done = run(source, options=["--hostfile", "hosts.json"], env=hosts)
    assert done.returncode == 0, done.stderr
    line = (
        "('10.0.0.1',)|('10.0.0.2',)|((), ('rdma_en3',))|(('rdma_en4',), ())|jaccl|7 1"
    )
    assert done.stdout.splitlines() == [line, line]


def test_run_over_hosts_joins_them_in_one_world(run_on_hosts):
    done = run_on_hosts(
        "import mlxdist; w = mlxdist.init(); print(w.host, w.mean(w.rank), w.size)"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["h1 1.0 3", "h1 1.0 3", "h2 1.0 3"]


def test_run_over_hosts_with_threads_sets_them_on_each(run_on_hosts):
    source = "import os; print(os.environ['OMP_NUM_THREADS'])"
    done = run_on_hosts(source, env={"OMP_NUM_THREADS": ""}, options=["--threads", "7"])
    assert done.stdout.split() == 3 * ["7"]


@pytest.mark.parametrize(
    ("act", "code", "message"),
    [
        (
            "raise ValueError('x')",
            1,
            "rank 2 of 3 on h2 failed at script.py:3 (ValueError: x)",
        ),
        ("sys.exit(3)", 3, "rank 2 of 3 on h2 failed at script.py:3 (exit 3)"),
        ("os._exit(0)", 1, "rank 2 of 3 on h2 did not finish; mpirun exited with code"),
        (
            "os.kill(os.getpid(), 9)",
            137,
            "rank 2 of 3 on h2 was killed by SIGKILL; ranks 0 and 1 on h1 were ended",
        ),
        # The daemon of its host. mpirun exits with 0.
        (
            "os.kill(os.getppid(), 9)",
            1,
            "lost touch with h2; rank 2 of 3 on h2 did",
        ),
    ],
)
def test_run_with_a_rank_that_fails_names_its_host(run_on_hosts, act, code, message):
    wait = "" if "_exit" in act else "time.sleep(600)"
    done = run_on_hosts(
        "import os, sys, time\n"
        f"if os.environ['OMPI_COMM_WORLD_RANK'] == '2':\n    {act}\n{wait}"
    )
    assert done.returncode == code, done.stderr
    assert f"mlxdist run: {message}" in done.stderr


def test_run_tells_the_rank_that_failed_from_those_ended_with_it(run_on_hosts):
    done = run_on_hosts(
        "import os, mlxdist\n"
        "w = mlxdist.init()\n"
        "if w.rank == 2: raise ValueError('x')\n"
        "w.barrier()\n"
    )
    assert done.returncode == 1
    message = "mlxdist run: rank 2 of 3 on h2 failed "
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "(ValueError: x); ranks 0 and 1 on h1 were ended with it" in done.stderr


def test_run_with_an_unreachable_host_names_it_and_doctor(run_on_hosts):
    done = run_on_hosts("", env={"UNREACHABLE": "h2"})
    assert done.returncode == 255  # that of ssh
    assert "ssh: connect to host h2 port 22: No route to host" in done.stderr
    assert "`mlxdist doctor -H h1:2,h2:1` finds out what is wrong" in done.stderr


def test_run_with_a_missing_folder_names_it(run_on_hosts):
    done = run_on_hosts("", options=["--cwd", "/no/such/folder"])
    assert done.returncode == 1
    assert "has no folder /no/such/folder to run in" in done.stderr.splitlines()[-1]


def test_run_with_a_timeout_ends_all_hosts(run_on_hosts):
    done = run_on_hosts("import time; time.sleep(600)", options=["--timeout", "2"])
    assert done.returncode == 124
    assert "ended after --timeout 2 s; ranks 0 and 1 of 3 on h1, rank" in done.stderr


@pytest.mark.parametrize("options", [(), ("--label",)])
def test_log_dir_over_hosts_has_a_file_for_each_rank(run_on_hosts, tmp_path, options):
    done = run_on_hosts(SHOW, options=["--log-dir", "logs", *options])
    assert done.returncode == 0, done.stderr
    for rank, host in enumerate(("h1", "h1", "h2")):
        text = (tmp_path / f"logs/rank-{rank}.log").read_text()
        assert "mlxdist" not in text
        assert text.count(f'["{host}", "{rank}"') == 1
        assert text.count("to standard error") == 1
        label = f"[rank {rank}] " if options else ""
        assert f'{label}["{host}", "{rank}"' in done.stdout
    assert done.stderr.count("to standard error") == 3
    assert "\x1e" not in done.stdout + done.stderr


def test_run_with_python_uses_that_interpreter_on_each_host(run_on_hosts, tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    source = "import sys; print(sys.executable)"
    python = str(tmp_path / "python")
    done = run_on_hosts(source, options=["--python", python])
    assert done.stdout.split() == 3 * [python]


def test_dry_run_prints_a_line_that_a_shell_can_run(run_on_hosts, hosts, tmp_path):
    done = run_on_hosts(SHOW, "a b", options=["--dry-run"])
    assert done.returncode == 0
    assert not (tmp_path / "reached").exists()
    agent = {"PRTE_MCA_plm_ssh_agent": str(tmp_path / "agent")}
    shell = jobs.run(["sh", "-c", done.stdout], env=hosts | agent, cwd="/")
    assert shell.returncode == 0, shell.stderr
    assert [json.loads(line)[4] for line in shell.stdout.splitlines()] == 3 * [["a b"]]


def test_run_with_much_output_loses_no_mark(run_on_hosts):
    source = """
import os, sys
text = os.environ["OMPI_COMM_WORLD_RANK"] * 80 + "\\n"
for _ in range(1000):
    os.write(2, text.encode())
os.write(2, b"\\x1e control byte of the job, and no end")
"""
    done = run_on_hosts(source, names="h1:2,h2:2")
    assert done.returncode == 0, done.stderr[-500:]
    assert "\x1emlxdist" not in done.stderr
    assert done.stderr.count("\x1e control byte of the job") == 4
    for rank in range(4):
        assert done.stderr.count(str(rank)) >= 80_000


def test_run_that_is_killed_ends_its_ranks_on_each_host(run_command, hosts, tmp_path):
    source = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    (tmp_path / "script.py").write_text(source)
    (tmp_path / "tmp").mkdir()
    env = {**hosts, "TMPDIR": str(tmp_path / "tmp")}
    command = [*run_command, "-H", "h1,h2", "script.py"]
    process = jobs.start(command, cwd=tmp_path, env=env)
    try:
        ranks = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
        process.wait()
        assert jobs.wait_until(lambda: not any(map(jobs.is_alive, ranks)))
        assert jobs.wait_until(lambda: jobs.processes(process.pid) == [])
        folder = tmp_path / "tmp"
        assert jobs.wait_until(lambda: not list(folder.glob("mlxdist-run-*")))
    finally:
        jobs.end_session(process.pid)
        process.communicate()
