"""`mlxdist run` over hosts of their own names, and hosts that fail."""

import json
import re
import sys
import time

import pytest

from tests.support import jobs
from tests.support.fake_hosts import hosts  # noqa: F401

RUN = [sys.executable, "-m", "mlxdist.cli", "run"]

SHOW = """
import json, os, socket, sys
names = ("OMPI_COMM_WORLD_RANK", "KEY", "OMP_NUM_THREADS")
print(json.dumps([socket.gethostname(), *map(os.environ.get, names), sys.argv[1:],
                  os.getcwd()]))
print("to standard error", end="", file=sys.stderr)
"""


@pytest.fixture
def run(tmp_path, hosts):  # noqa: F811
    def start(source, *arguments, options=(), where="h1:2,h2", env=None, timeout=60):
        (tmp_path / "script.py").write_text(source)
        command = [*RUN, "-H", where, *options, "script.py", *arguments]
        env = {**hosts, "OMP_NUM_THREADS": "3", **(env or {})}
        return jobs.run(command, cwd=tmp_path, env=env, timeout=timeout)

    return start


def test_ranks_on_hosts_find_what_they_need(run, tmp_path):
    arguments = ["--map-by", ":", "", "a b", "$HOME", "'\"", "é\n;"]
    ran = run(SHOW, *arguments, options=["--env", "KEY=a; $b\n'\"é"])
    assert ran.returncode == 0, ran.stderr
    shown = sorted(map(json.loads, ran.stdout.splitlines()))
    common = ["a; $b\n'\"é", "3", arguments, str(tmp_path)]
    assert shown == [
        [h, r, *common] for h, r in (("h1", "0"), ("h1", "1"), ("h2", "2"))
    ]
    # Nothing is left of the lines by which the ranks say that they have finished.
    said = re.sub(r"^\[.*\] plm:ssh: Warning: setpgid.*\n", "", ran.stderr)
    assert said == 3 * "to standard error"


def test_a_job_over_hosts_trains(run):
    ran = run(
        "import mlxdist; w = mlxdist.init(); print(w.host, w.mean(w.rank), w.size)"
    )
    assert ran.returncode == 0, ran.stderr
    assert sorted(ran.stdout.splitlines()) == ["h1 1.0 3", "h1 1.0 3", "h2 1.0 3"]


def test_each_host_shares_its_own_cores(run, tmp_path):
    source = "import os; print(os.environ['OMP_NUM_THREADS'])"
    (tmp_path / "script.py").write_text(source)
    ran = run(source, env={"OMP_NUM_THREADS": ""}, options=["--threads", "7"])
    assert ran.stdout.split() == 3 * ["7"]


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        ("raise ValueError('x')", 1, "rank 2 on h2 failed (ValueError: x)"),
        ("sys.exit(3)", 3, "rank 2 on h2 failed (exit 3)"),
        ("os._exit(0)", 1, "rank 2 on h2 of 3 did not finish; mpirun exited with code"),
        (
            "os.kill(os.getpid(), 9)",
            137,
            "rank 2 on h2 of 3 did not finish; ranks 0 and 1 on h1 were ended with it",
        ),
        # The daemon of its host: mpirun exits with 0.
        (
            "os.kill(os.getppid(), 9)",
            1,
            "lost touch with h2; rank 2 on h2 of 3 did",
        ),
    ],
)
def test_failures_name_the_host(run, act, code, said):
    wait = "" if "_exit" in act else "time.sleep(60)"
    begun = time.monotonic()
    ran = run(
        "import os, sys, time\n"
        f"if os.environ['OMPI_COMM_WORLD_RANK'] == '2':\n    {act}\n{wait}"
    )
    assert ran.returncode == code, ran.stderr
    assert f"mlxdist run: {said}" in ran.stderr
    assert time.monotonic() - begun < 20


def test_a_rank_of_a_world_that_dies_is_told_from_those_ended_with_it(run):
    ran = run(
        "import os, mlxdist\n"
        "w = mlxdist.init()\n"
        "if w.rank == 2: raise ValueError('x')\n"
        "w.barrier()\n"
    )
    assert ran.returncode == 1
    assert (
        "mlxdist run: rank 2 on h2 failed (failed in user code, after step 0; the "
        in ran.stderr
        or "mlxdist run: rank 2 on h2 failed (ValueError: x); ranks 0 and 1 on h1 were "
        "ended with it"
        in ran.stderr
    ), ran.stderr


def test_an_unreachable_host_is_named(run):
    ran = run("", env={"UNREACHABLE": "h2"})
    assert ran.returncode != 0
    assert "ssh: connect to host h2 port 22: No route to host" in ran.stderr
    assert "`mlxdist doctor -H h1:2,h2:1` finds out what is wrong" in ran.stderr


def test_a_folder_that_is_not_there_is_named(run):
    ran = run("", options=["--cwd", "/no/such/folder"])
    assert ran.returncode == 1
    assert "has no folder /no/such/folder to run in" in ran.stderr.splitlines()[-1]


def test_the_time_of_a_job(run):
    begun = time.monotonic()
    ran = run("import time; time.sleep(60)", options=["--timeout", "2"])
    assert ran.returncode == 124
    assert "ended after --timeout 2 s; ranks 0 and 1 on h1, rank 2 on" in ran.stderr
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("options", [(), ("--label",)])
def test_a_file_of_output_for_each_rank(run, tmp_path, options):
    ran = run(SHOW, options=["--log-dir", "logs", *options])
    assert ran.returncode == 0, ran.stderr
    for rank, host in enumerate(("h1", "h1", "h2")):
        text = (tmp_path / f"logs/rank-{rank}.log").read_text()
        assert "mlxdist" not in text
        assert text.count(f'["{host}", "{rank}"') == 1
        assert text.count("to standard error") == 1
        label = f"[rank {rank}] " if options else ""
        assert f'{label}["{host}", "{rank}"' in ran.stdout
    assert ran.stderr.count("to standard error") == 3
    assert "\x1e" not in ran.stdout + ran.stderr


def test_another_python(run, tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    source = "import sys; print(sys.executable)"
    python = str(tmp_path / "python")
    ran = run(source, options=["--python", python])
    assert ran.stdout.split() == 3 * [python]


def test_a_dry_run_prints_what_a_shell_can_run(run, hosts, tmp_path):  # noqa: F811
    ran = run(SHOW, "a b", options=["--dry-run"])
    assert ran.returncode == 0
    assert not (tmp_path / "reached").exists()
    again = jobs.run(["sh", "-c", ran.stdout], env=hosts, cwd="/")
    assert again.returncode == 0, again.stderr
    assert [json.loads(line)[4] for line in again.stdout.splitlines()] == 3 * [["a b"]]


def test_much_output_before_the_end_loses_no_mark(run):
    source = """
import os, sys
text = os.environ["OMPI_COMM_WORLD_RANK"] * 80 + "\\n"
for _ in range(1000):
    os.write(2, text.encode())
os.write(2, b"\\x1e own control byte, and no end")
"""
    ran = run(source, where="h1:2,h2:2")
    assert ran.returncode == 0, ran.stderr[-500:]
    assert "\x1emlxdist" not in ran.stderr
    assert ran.stderr.count("\x1e own control byte") == 4
    for rank in range(4):
        assert ran.stderr.count(str(rank)) >= 80_000
