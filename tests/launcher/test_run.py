"""`mlxdist run`: what the script finds, and jobs that end in every way they can."""

import sys
import time

import pytest

from mlxdist.launcher.cores import usable_cores
from tests.support import jobs

RUN = [sys.executable, "-m", "mlxdist.cli", "run"]


@pytest.fixture
def run(tmp_path):
    """`mlxdist run` on a script's source, or on a script that is already there."""

    def start(n, source, *arguments, options=(), env=None):
        if source is not None:
            (tmp_path / "script.py").write_text(source)
        command = [*RUN, "-n", str(n), *options, "script.py", *arguments]
        return jobs.run(command, cwd=tmp_path, env=env)

    return start


def last_line(ran):
    return ran.stderr.strip().splitlines()[-1]


SHOW = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], __name__, __file__, sys.stdin.read()]))
"""


def test_the_script_finds_what_python_would_give_it(run, tmp_path):
    arguments = ["--map-by", ":", "--", "-n", "3", "", "a b", "$HOME", "'\"", "é"]
    ran = run(2, SHOW, *arguments)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    path = str(tmp_path / "script.py")
    shown = [eval(line) for line in ran.stdout.splitlines()]
    assert shown == 2 * [[[path, *arguments], str(tmp_path), "__main__", path, ""]]


def test_modules_run_by_name(run, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").touch()
    (tmp_path / "pack/train.py").write_text(SHOW)
    ran = jobs.run([*RUN, "-n", "1", "-m", "pack.train", "-m", "x"], cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    path = str(tmp_path / "pack/train.py")
    assert eval(ran.stdout) == [[path, "-m", "x"], str(tmp_path), "__main__", path, ""]


def test_a_job_that_trains_finishes(run):
    source = "import mlxdist; w = mlxdist.init(); print(w.mean(w.rank), w.size)"
    for n in (1, 3):
        ran = run(n, source)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines() == [f"{(n - 1) / 2} {n}"] * n


def test_more_ranks_than_cores_are_warned_of(run):
    n = usable_cores() + 1
    ran = run(n, "print('here')")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["here"] * n
    assert f"{n} ranks share {n - 1} core" in ran.stderr


FAIL = """
import atexit, os, sys, time
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
def inner():
    if rank == 1:
        {act}
inner()
{after}
"""
WAIT = "time.sleep(60)"
NOBODY_SAID = "ranks 0 and 1 of 2 did not finish; mpirun exited with code "


@pytest.mark.parametrize(
    ("act", "after", "code", "said"),
    [
        ("sys.exit(3)", WAIT, 3, "rank 1 failed (exit 3); rank 0 of 2 did not finish"),
        ("sys.exit('why')", WAIT, 1, "rank 1 failed (exit why); rank 0 of 2 did not"),
        ("raise ValueError('x')", WAIT, 1, "rank 1 failed (ValueError: x); rank 0"),
        ("os.kill(os.getpid(), 9)", WAIT, 137, NOBODY_SAID + "137"),
        ("os.abort()", WAIT, 134, NOBODY_SAID + "134"),
        ("os._exit(0)", "", 1, "rank 1 of 2 did not finish; mpirun exited with code 0"),
        ("atexit.register(os._exit, 0)", "", 1, "rank 1 of 2 did not finish; mpirun"),
        ("atexit.register(time.sleep, 60); sys.exit(3)", WAIT, 3, "rank 1 failed"),
        (
            "sys.excepthook = lambda *_: sys.exit(0); raise ValueError('x')",
            "",
            1,
            "rank 1 failed (ValueError: x); mpirun exited with code 0",
        ),
        (
            "os.fork() or sys.exit(0); os.wait(); os._exit(0)",
            "",
            1,
            "rank 1 of 2 did not finish; mpirun exited with code 0",
        ),
    ],
)
def test_failures_are_told(run, act, after, code, said):
    begun = time.monotonic()
    ran = run(2, FAIL.format(act=act, after=after))
    assert ran.returncode == code, ran.stderr
    assert last_line(ran).startswith(f"mlxdist run: {said}")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("act", ["sys.exit(0)", "sys.exit()", "return"])
def test_ends_that_are_none(run, act):
    ran = run(2, FAIL.format(act=act, after=""))
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_traceback_is_the_script_s_own(run):
    ran = run(2, FAIL.format(act="raise ValueError('x')", after=WAIT))
    trace = ran.stderr[: ran.stderr.index("ValueError: x")]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in <module>" in trace
    assert "in inner" in trace
    assert "runpy" not in trace
    assert "rank_main" not in trace
    ran = run(1, "def f(:\n")
    assert ran.stderr.startswith('  File "')
    assert "SyntaxError" in ran.stderr


@pytest.mark.parametrize("act", ["raise ValueError('x')", "sys.exit(3)", "os._exit(0)"])
def test_ranks_of_a_world_do_not_wait_for_one_that_left(run, act):
    source = "import mlxdist; world = mlxdist.init()" + FAIL
    begun = time.monotonic()
    ran = run(2, source.format(act=act, after="world.barrier()"))
    assert ran.returncode != 0
    assert "rank 0 was ended with it" in last_line(ran)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("end", ["", "sys.exit(0)"])
def test_the_script_s_globals_live_until_its_exit_handlers(run, tmp_path, end):
    # No function here, which would keep the globals by itself.
    (tmp_path / "things.py").write_text("""
class Thing:
    def __del__(self):
        print("freed", flush=True)
""")
    ran = run(
        1,
        "import atexit, sys, things\n"
        "thing = things.Thing()\n"
        f"atexit.register(print, 'at exit', flush=True)\n{end}",
    )
    assert ran.stdout.split() == ["at", "exit", "freed"]


def test_labels_begin_each_line(run):
    source = """
import os, sys
for line in ("one", "", " two"):
    print(line)
print("trouble", file=sys.stderr)
print("x" * 100_000)
print("no end", end="")
"""
    ran = run(2, source, options=["--label"])
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    for rank in (0, 1):
        own = [line for line in lines if line.startswith(f"[rank {rank}] ")]
        texts = ["one", "", " two", "x" * 100_000, "no end"]
        assert own == [f"[rank {rank}] {text}" for text in texts]
    assert len(lines) == 10
    assert sorted(ran.stderr.splitlines()) == ["[rank 0] trouble", "[rank 1] trouble"]


@pytest.mark.parametrize("options", [(), ("--label",)])
def test_a_reader_that_leaves_does_not_hang_the_job(tmp_path, options):
    (tmp_path / "script.py").write_text("for i in range(50_000): print(i)")
    process = jobs.start([*RUN, "-n", "2", *options, "script.py"], cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    try:
        process.wait(timeout=30)
    finally:
        jobs.end_session(process.pid)
        process.stderr.close()
        process.wait()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise KeyError('x')", "rank 1 failed (KeyError: 'x'); rank 0 was ended"),
        (
            "os.kill(os.getpid(), 9)",
            "rank 1 of 2 did not finish; rank 0 was ended with",
        ),
        ("time.sleep(99)", "longer than timeout=2: rank 1 on"),
    ],
)
def test_the_summary_tells_who_failed_from_who_was_ended(how, told, run):
    script = (
        "import os, time, mlxdist\n"
        "world = mlxdist.init(timeout=2)\n"
        f"if world.rank == 1:\n    time.sleep(0.5)\n    {how}\n"
        "world.barrier()\n"
    )
    ran = run(2, script)
    assert ran.returncode != 0
    assert told in last_line(ran)
