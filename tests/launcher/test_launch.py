"""`mlxdist run` before it starts anything: its command line, and what it refuses."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlxdist import __version__, cli
from mlxdist.launcher import command, cores, output, runner
from mlxdist.launcher.spec import Job
from tests.support import jobs

# The command line and the environment, without starting anything


def line(ranks, *, usable_cores=8, as_root=False, reads=True, **options):
    return command.mpirun_command(
        Job(ranks, "train.py", **options),
        mpirun="/mpi/bin/mpirun",
        python="/bin/py",
        usable_cores=usable_cores,
        as_root=as_root,
        forward_stdin=reads,
    )


def environment(ranks=2, env=None, *, usable_cores=8, columns=None, **options):
    job = Job(ranks, "train.py", **options)
    return command.rank_environment(
        job, env or {}, usable_cores=usable_cores, run_dir="/run", columns=columns
    )


def test_command():
    assert line(4)[:7] == [
        *("/mpi/bin/mpirun", "-n", "4", "--host", "localhost:4", "--bind-to", "none")
    ]
    assert line(4)[7] == "/bin/py"
    assert line(4)[8].endswith("rank_main.py")
    assert line(4)[9:] == [os.path.abspath("train.py")]
    assert os.path.isabs(line(4)[8])


def test_command_for_root_alone_allows_root():
    assert "--allow-run-as-root" not in line(2)
    assert "--allow-run-as-root" in line(2, as_root=True)


def test_command_oversubscribes_only_beyond_the_cores():
    flags = ["--map-by", ":OVERSUBSCRIBE", "--mca", "mpi_yield_when_idle", "1"]
    assert not set(flags) & set(line(8, usable_cores=8)) - {"1"}
    assert " ".join(flags) in " ".join(line(9, usable_cores=8))


def test_command_forwards_input_from_a_terminal_alone():
    assert "--stdin" not in line(2)
    assert "--stdin none" in " ".join(line(2, reads=False))


def test_command_never_holds_the_arguments():
    # mpirun rewrites some of them as its own, and ":" starts another program.
    assert line(2, arguments=(":", "--map-by", "x")) == line(2)


@pytest.mark.parametrize(
    ("ranks", "usable", "threads"), [(2, 8, "4"), (3, 8, "2"), (9, 8, "1"), (1, 1, "1")]
)
def test_cores_are_shared_among_the_ranks(ranks, usable, threads):
    env = environment(ranks, usable_cores=usable)
    assert {env[name] for name in cores.THREAD_VARIABLES} == {threads}


def test_threads_of_the_user_stay():
    env = environment(2, {"OMP_NUM_THREADS": "3"})
    assert {env[name] for name in cores.THREAD_VARIABLES} == {"3"}
    env = environment(2, {"MKL_NUM_THREADS": "3"})
    assert env["MKL_NUM_THREADS"] == "3"
    assert env["OMP_NUM_THREADS"] == "4"
    env = environment(2, {"OMP_NUM_THREADS": "3"}, threads=5)
    assert {env[name] for name in cores.THREAD_VARIABLES} == {"5"}


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
    labelled = output.labelled
    assert labelled(b"[1,0]<stdout>: hello\n") == b"[rank 0] hello\n"
    assert labelled(b"[1,12]<stderr>:   indented\n") == b"[rank 12]   indented\n"
    assert labelled(b"plain\n") == b"plain\n"
    assert (
        labelled(b"[1,0]<stdout>: no end[1,1]<stdout>: no end")
        == b"[rank 0] no end\n[rank 1] no end"
    )


# What is refused, before mpirun is started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run -n 0 {script}", "argument -n: found '0', wanted 1 or more"),
        ("run -n x {script}", "argument -n: found 'x', wanted 1 or more"),
        ("run -n -2 {script}", "argument -n: "),
        ("run {script}", "how many ranks? Give -n N, or hosts with -H"),
        ("run {script} -n 2", "how many ranks?"),
        ("run -n 2", "the following arguments are required: SCRIPT"),
        ("run -n 2 --threads 0 {script}", "argument --threads: found '0'"),
        ("run -n 2 --timeout 0 {script}", "argument --timeout: found '0'"),
        ("run -n 2 --timeout nan {script}", "argument --timeout: found 'nan'"),
        ("run -n 2 --wait {script}", "unrecognized arguments: --wait"),
        ("run -n 2 --iface en0 {script}", "--iface is for several hosts"),
        ("run -n 3 -H a:2 {script}", "3 ranks on 2 slots (a:2)"),
        ("run -H a --hostfile {script} {script}", "not allowed with argument -H"),
        ("run -H a --hostfile {script}", "not allowed with argument -H"),
        (
            "run --hostfile {folder}/none {script}",
            "error: --hostfile {folder}/none: No such file or directory; wanted a file",
        ),
        ("run --hostfile {folder} {script}", "--hostfile {folder}: Is a directory"),
        ("run -n 1 --max-restarts -1 {script}", "found '-1', wanted 0 or more"),
        (
            "run -n 1 --log-dir {script}/logs {script}",
            "--log-dir {script}/logs: no file can be made in {script}: Not a directory",
        ),
        (
            "run -n 1 --log-dir {script}/logs --dry-run {script}",
            "--log-dir {script}/logs: no file can be made in {script}: Not a directory",
        ),
        (
            "run -H a,b --log-dir {script} --dry-run {script}",
            "--log-dir {script}: no file can be made in {script}: Not a directory",
        ),
        (
            "run -n 1 --timeline {script}/x.json {script}",
            "--timeline {script}: no file",
        ),
        (
            "doctor --postmortem {folder}/none",
            "--postmortem {folder}/none: there is no",
        ),
        ("doctor --postmortem {folder}", "--postmortem {folder}: it has no rank-*.js"),
        ("doctor --python no-such-python", "there is no such program here"),
        ("checkpoint show {script}", "error: {script}: Not a directory"),
        ("run -n 1 --python no-such-python {script}", "no such program"),
        ("run -n 1 --python ./none {script}", "no such program"),
        ("run -n 1 --cwd {folder}/none {script}", "there is no such folder"),
        ("run -n 1 --mpi-arg : {script}", "found ':'"),
        ('run -n 1 --mpi-arg=" {script}', "No closing quotation"),
        ("run -n 1 --env MLXDIST_NOT_SET {script}", "it is not set here"),
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
    said = capsys.readouterr().err
    assert message.format(script=script, folder=tmp_path) in said
    assert "[Errno" not in said


def test_a_dry_run_makes_nothing(tmp_path, capsys):
    (tmp_path / "x.py").touch()
    logs = tmp_path / "new" / "logs"
    words = ["run", "-n", "1", "--dry-run", "--log-dir", str(logs), "--max-restarts"]
    assert cli.main([*words, "0", str(tmp_path / "x.py")]) == 0
    assert "mpirun -n 1" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["x.py"]


def test_version_and_help(capsys):
    for arguments, text in (
        (["--version"], f"mlxdist {__version__}\n"),
        (["--help"], "run N ranks of a script, on this machine or on several"),
        (["run", "--help"], "mlxdist run -n 2 train.py"),
    ):
        with pytest.raises(SystemExit) as leaving:
            cli.main(arguments)
        assert leaving.value.code == 0
        assert text in capsys.readouterr().out


# What an mpirun that was killed has left


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_of_a_killed_mpirun_are_not_in_the_way(tmp_path):
    """Bare mpirun ends with 213 where an earlier one had the same process id."""
    host, top = socket.gethostname(), int(Path("/proc/sys/kernel/pid_max").read_text())
    ids = range(os.getpid() + 1, os.getpid() + 1000)
    for pid in (number % top for number in ids):
        folder = tmp_path / f"ompi.{pid}"
        folder.mkdir()
        (folder / f"pmix.{host}.tool").write_text(f"of {pid}\n")
    (tmp_path / "hello.py").write_text("print('hello')")
    command = [sys.executable, "-m", "mlxdist.cli", "run", "-n", "2", "hello.py"]
    done = jobs.run(command, env={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "hello\nhello\n"), done.stderr
    assert not list(tmp_path.glob("mlxdist-run-*"))


def test_where_mpirun_puts_its_files(monkeypatch, tmp_path):
    (tmp_path / "train.py").touch()
    job = Job(1, str(tmp_path / "train.py"))
    words, _ = runner.prepare(job, run_dir="/run/dir")
    assert words[words.index("prte_local_tmpdir_base") + 1] == "/run/dir"
    monkeypatch.setenv("PRTE_MCA_prte_tmpdir_base", "/mine")  # mpirun takes one only
    words, _ = runner.prepare(job, run_dir="/run/dir")
    assert "prte_local_tmpdir_base" not in words
