"""Options of `mlxdist run` that are refused before mpirun is started."""

import os
import shutil

import pytest

from mlxdist.launcher import mpirun_command, preflight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-n 0 {script}", "argument -n: found '0', wanted 1 or more"),
        ("-n x {script}", "argument -n: found 'x', wanted 1 or more"),
        ("-n -2 {script}", "argument -n: "),
        ("{script}", "how many ranks? Give -n N, or hosts with -H"),
        ("{script} -n 2", "how many ranks?"),
        ("-n 2", "the following arguments are required: SCRIPT"),
        ("-n 2 --threads 0 {script}", "argument --threads: found '0'"),
        ("-n 2 --timeout 0 {script}", "argument --timeout: found '0'"),
        ("-n 2 --timeout nan {script}", "argument --timeout: found 'nan'"),
        ("-n 2 --wait {script}", "there is no option --wait; `mlxdist run --help`"),
        ("-n 2 --iface en0 {script}", "--iface is for several hosts"),
        ("-n 3 -H a:2 {script}", "3 ranks on 2 slots (a:2)"),
        ("-H a --hostfile {script} {script}", "not allowed with argument -H"),
        ("-H a --hostfile {script}", "not allowed with argument -H"),
        (
            "--hostfile {folder}/none {script}",
            "error: --hostfile {folder}/none: No such file or directory; wanted a file",
        ),
        ("--hostfile {folder} {script}", "--hostfile {folder}: Is a directory"),
        ("-n 1 --max-restarts -1 {script}", "found '-1', wanted 0 or more"),
        (
            "-n 1 --log-dir {script}/logs {script}",
            "--log-dir {script}/logs: no file can be made in {script}: Not a directory",
        ),
        (
            "-n 1 --log-dir {script}/logs --dry-run {script}",
            "--log-dir {script}/logs: no file can be made in {script}: Not a directory",
        ),
        (
            "-H a,b --log-dir {script} --dry-run {script}",
            "--log-dir {script}: no file can be made in {script}: Not a directory",
        ),
        ("-n 1 --timeline {script}/x.json {script}", "--timeline {script}: no file"),
        ("-n 1 --timeline {folder} {script}", "{folder} is a folder; name a file"),
        ("-n 1 --report {folder} {script}", "{folder} is a folder; name a file"),
        ("-n 1 --report /dev/stdout {script}", "is a device or a pipe; name a file"),
        ("-n 1 --report /dev/none --dry-run {script}", "is a device or a pipe"),
        ("-n 1 --timeline /dev/null {script}", "is a device or a pipe; name a file"),
        ("-H a --timeline /dev/null --dry-run {script}", "is a device or a pipe"),
        ("-n 1 --report {script}/b {script}", "no file can be made in {script}"),
        ("-n 1 --python no-such-python {script}", "no such program"),
        ("-n 1 --python ./none {script}", "no such program"),
        ("-n 1 --python {folder} {script}", "there is no such program here"),
        ("-n 1 --python . {script}", "--python '.': there is no such program here"),
        ("-n 1 --cwd {folder}/none {script}", "there is no such folder"),
        ("-n 1 --mpi-arg : {script}", "found ':'"),
        ('-n 1 --mpi-arg=" {script}', "No closing quotation"),
        ("-n 1 --env MLXDIST_NOT_SET {script}", "it is not set here"),
        ("-n 2 {script}.missing", "there is no script"),
        ("-n 2 {folder}", "is a folder without a __main__.py"),
        ("-n 2 -m no_such_module", "no module 'no_such_module' in"),
        ("-n 2 -m ./x.py", "wanted the name of a module"),
    ],
)
def test_run_with_invalid_options_exits_with_2(
    arguments, message, main, no_programs, tmp_path, capsys
):
    script = tmp_path / "script.py"
    script.touch()
    words = arguments.format(script=script, folder=tmp_path).split()
    assert main("run", *words) == 2
    error = capsys.readouterr().err
    assert message.format(script=script, folder=tmp_path) in error
    assert "[Errno" not in error


def test_run_in_a_removed_folder_exits_with_2(main, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main("run", "-n", "1", "x.py") == 2
    assert "the current folder is gone; cd to another one" in capsys.readouterr().err


def test_run_over_hosts_without_ssh_exits_with_2(main, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda *_arguments, **_options: None)
    monkeypatch.delenv(mpirun_command.AGENT_VARIABLE, raising=False)
    assert main("run", "-H", "host.invalid,b.invalid", "x.py") == 2
    assert "no ssh is on the PATH, by which mpirun reaches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "times"), [("mac1:3,mac2", 1), ("mac1,mac2,mac1:2", 2)]
)
def test_run_with_a_repeated_host_warns(names, times, main, tmp_path, capsys):
    (tmp_path / "lines").write_text(names.replace(":", " slots=").replace(",", "\n"))
    for options in (["-H", names], ["--hostfile", tmp_path / "lines"]):
        assert main("run", "--dry-run", *options, "x.py") == 0
        captured = capsys.readouterr()
        assert "--host mac1:3,mac2:1" in captured.out
        warning = "warning: mac1 is named 2 times, and takes 3 ranks"
        assert captured.err.count(warning) == times - 1


def test_file_in_the_place_of_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a device or a pipe; name a file"):
        preflight.check_file("--report", tmp_path / "pipe")
