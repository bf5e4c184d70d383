"""`mlxdist run`: the command it builds, and jobs that end in every way they can."""

import errno
import os
import pty
import select
import signal
import subprocess
import sys
import time

import jobs
import pytest

from mlxdist import __version__, cli, launcher, mpirun

COMMAND = [sys.executable, "-m", "mlxdist.cli"]
RUN = [*COMMAND, "run"]


# The command line and the environment, without starting anything


def command(ranks, *, cores=8, as_root=False, **options):
    job = launcher.Job(ranks, "train.py", **options)
    return launcher.mpirun_command(
        job, mpirun="/mpi/bin/mpirun", python="/bin/py", cores=cores, as_root=as_root
    )


def environment(ranks=2, env=None, *, cores=8, columns=None, **options):
    job = launcher.Job(ranks, "train.py", **options)
    return launcher.rank_environment(
        job, env or {}, cores=cores, run_dir="/run", columns=columns
    )


def test_command():
    assert command(4)[:7] == [
        *("/mpi/bin/mpirun", "-n", "4", "--host", "localhost:4", "--bind-to", "none")
    ]
    assert command(4)[7] == "/bin/py"
    assert command(4)[8].endswith("rank_main.py")
    assert command(4)[9:] == [os.path.abspath("train.py")]
    assert os.path.isabs(command(4)[8])


def test_command_for_root_alone_allows_root():
    assert "--allow-run-as-root" not in command(2)
    assert "--allow-run-as-root" in command(2, as_root=True)


def test_command_oversubscribes_only_beyond_the_cores():
    flags = ["--map-by", ":OVERSUBSCRIBE", "--mca", "mpi_yield_when_idle", "1"]
    assert not set(flags) & set(command(8, cores=8)) - {"1"}
    assert " ".join(flags) in " ".join(command(9, cores=8))


def test_command_never_holds_the_arguments():
    # mpirun rewrites some of them as its own, and ":" starts another program.
    assert command(2, arguments=(":", "--map-by", "x")) == command(2)


@pytest.mark.parametrize(
    ("ranks", "cores", "threads"), [(2, 8, "4"), (3, 8, "2"), (9, 8, "1"), (1, 1, "1")]
)
def test_cores_are_shared_among_the_ranks(ranks, cores, threads):
    env = environment(ranks, cores=cores)
    assert {env[name] for name in launcher.THREAD_VARIABLES} == {threads}


def test_threads_of_the_user_stay():
    env = environment(2, {"OMP_NUM_THREADS": "3"})
    assert {env[name] for name in launcher.THREAD_VARIABLES} == {"3"}
    env = environment(2, {"MKL_NUM_THREADS": "3"})
    assert env["MKL_NUM_THREADS"] == "3"
    assert env["OMP_NUM_THREADS"] == "4"
    env = environment(2, {"OMP_NUM_THREADS": "3"}, threads=5)
    assert {env[name] for name in launcher.THREAD_VARIABLES} == {"5"}


def test_a_job_inside_a_job_starts_clean_and_settings_stay():
    setting = {"OMPI_MCA_btl_tcp_if_include": "en0", "HOME": "/home"}
    assert setting.items() <= environment(2, setting).items()
    inside = {"OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1", "HOME": "/home"}
    env = environment(2, inside)
    assert env["HOME"] == "/home"
    assert not [name for name in env if name.startswith(("OMPI_", "PMIX_"))]


def test_terminal_is_named_only_where_there_is_one():
    assert "MLXDIST_TERMINAL" not in environment(2, {"MLXDIST_TERMINAL": "1"})
    env = environment(2, columns=97)
    assert (env["MLXDIST_TERMINAL"], env["MLXDIST_COLUMNS"]) == ("1", "97")


def test_labels():
    labelled = mpirun.labelled
    assert labelled(b"[1,0]<stdout>: hello\n") == b"[rank 0] hello\n"
    assert labelled(b"[1,12]<stderr>:   indented\n") == b"[rank 12]   indented\n"
    assert labelled(b"plain\n") == b"plain\n"
    assert (
        labelled(b"[1,0]<stdout>: no end[1,1]<stdout>: no end")
        == b"[rank 0] no end\n[rank 1] no end"
    )


@pytest.mark.parametrize(
    ("missing", "reasons", "text"),
    [
        ([], {}, "all ranks of 4 finished"),
        ([2], {}, "rank 2 of 4 did not finish"),
        (
            [0, 1, 3],
            {1: "exit 3"},
            "rank 1 failed (exit 3); ranks 0 and 3 of 4 did not",
        ),
        ([0, 1, 3], {}, "ranks 0, 1 and 3 of 4 did not finish"),
    ],
)
def test_the_outcome_in_words(missing, reasons, text):
    assert str(launcher.Outcome(4, missing, reasons)).startswith(text)


# What is refused, before mpirun is started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run -n 0 {script}", "argument -n: found '0', wanted 1 or more"),
        ("run -n x {script}", "argument -n: found 'x', wanted 1 or more"),
        ("run -n -2 {script}", "argument -n: "),
        ("run {script}", "the following arguments are required: -n"),
        ("run {script} -n 2", "the following arguments are required: -n"),
        ("run -n 2", "the following arguments are required: SCRIPT"),
        ("run -n 2 --threads 0 {script}", "argument --threads: found '0'"),
        ("run -n 2 --timeout 3 {script}", "unrecognized arguments: --timeout"),
        ("run -n 2 {script}.missing", "there is no script"),
        ("run -n 2 {folder}", "is a folder without a __main__.py"),
        ("run -n 2 -m no_such_module", "no module 'no_such_module' in"),
        ("run -n 2 -m ./x.py", "wanted the name of a module"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("", "arguments are required: COMMAND"),
    ],
)
def test_refusals(arguments, message, tmp_path, monkeypatch, capsys):
    def never(*_args, **_options):
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    script = tmp_path / "script.py"
    script.touch()
    words = arguments.format(script=script, folder=tmp_path).split()
    try:
        code = cli.main(words)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_version_and_help(capsys):
    for arguments, text in (
        (["--version"], f"mlxdist {__version__}\n"),
        (["--help"], "run N ranks of a script"),
        (["run", "--help"], "mlxdist run -n 2 train.py"),
    ):
        with pytest.raises(SystemExit) as leaving:
            cli.main(arguments)
        assert leaving.value.code == 0
        assert text in capsys.readouterr().out


# Jobs


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
    n = launcher.usable_cores() + 1
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
    assert "rank 0 of 2 did not finish" in ran.stderr or "ranks 0 and 1" in ran.stderr
    assert time.monotonic() - begun < 20


def test_the_script_s_globals_live_until_its_exit_handlers(run):
    source = """
import atexit, sys
class Thing:
    def __del__(self):
        print("freed", flush=True)
thing = Thing()
atexit.register(print, "at exit", flush=True)
{end}
"""
    for end in ("", "sys.exit(0)"):
        ran = run(1, source.format(end=end))
        assert ran.stdout.splitlines()[0] == "at exit"


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


# Signals

SLEEP = """
import os, signal, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleeping(tmp_path):
    """Starts 2 ranks that sleep; gives the launcher and its ranks' process ids."""
    started = []

    def start(*arguments):
        (tmp_path / "script.py").write_text(SLEEP)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        process = jobs.start(
            [*RUN, "-n", "2", "script.py", *arguments],
            cwd=tmp_path,
            env={"TMPDIR": str(tmp_path / "tmp")},
        )
        started.append(process)
        return process, [int(process.stdout.readline()) for _ in range(2)]

    yield start
    for process in started:
        jobs.end_session(process.pid)
        process.communicate()


def ends(process, code, said):
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert err.strip().splitlines()[-1].startswith(f"mlxdist run: {said}")
    deadline = time.monotonic() + 5
    while jobs.processes(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert jobs.processes(process.pid) == []


@pytest.mark.parametrize("arguments", [(), ("deaf",)])
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_the_job(sleeping, number, code, arguments):
    process, _ = sleeping(*arguments)
    process.send_signal(number)
    ends(process, code, f"ended by {number.name}; ranks 0 and 1 of 2 did not finish.")


def test_ctrl_c_reaches_launcher_and_mpirun_together(sleeping):
    process, _ = sleeping()
    os.killpg(process.pid, signal.SIGINT)
    ends(process, 130, "ended by SIGINT")


def test_a_second_signal_insists(sleeping):
    process, ranks = sleeping("deaf")
    mpirun_pid = parent(ranks[0])
    os.kill(mpirun_pid, signal.SIGSTOP)  # it can't end the job itself
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    ends(process, 130, "ended by SIGINT")


def test_ranks_do_not_outlive_a_killed_mpirun(sleeping, tmp_path):
    process, ranks = sleeping("deaf")
    os.kill(parent(ranks[0]), signal.SIGKILL)
    ends(process, 137, "ranks 0 and 1 of 2 did not finish; mpirun was ended by SIGKILL")
    left = [p.name for p in (tmp_path / "tmp").iterdir()]
    assert not [name for name in left if name.startswith("mlxdist-run-")]


def parent(pid):
    shown = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(shown.stdout)


# A terminal


def test_in_a_terminal_the_ranks_know_it_and_can_read_from_it(tmp_path):
    (tmp_path / "script.py").write_text("""
import os
if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
    names = ("MLXDIST_TERMINAL", "MLXDIST_COLUMNS")
    print([os.environ[name] for name in names], flush=True)
    print("read", input(), flush=True)
""")
    child, master = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        env = jobs.clean_environment({"COLUMNS": "91"})
        os.execve(sys.executable, [*RUN, "-n", "2", "script.py"], env)
    shown = ""
    try:
        shown = read_until(master, "'91']")
        os.write(master, b"typed\n")
        shown += read_until(master, "read typed")
    finally:
        code = wait_or_kill(child)
        os.close(master)
    assert "['1', '91']" in shown
    assert "read typed" in shown, shown
    assert code == 0


def read_until(master, text, timeout=30):
    shown, deadline = "", time.monotonic() + timeout
    while text not in shown and time.monotonic() < deadline:
        if select.select([master], [], [], 0.5)[0]:
            try:
                shown += os.read(master, 4096).decode()
            except OSError as error:
                if error.errno != errno.EIO:  # Linux: the other end is closed
                    raise
                break
    return shown


def wait_or_kill(pid, timeout=10):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    jobs.end_session(pid)
    os.waitpid(pid, 0)
    return None
