"""Marks that a rank leaves, as files and as lines on standard error."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxdist.launcher import environment, marks
from mlxdist.launcher.mark_filter import MarkFilter
from mlxdist.launcher.mpirun_log import MpirunLog


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv(environment.RUN_DIR, raising=False)
    monkeypatch.delenv(environment.MARKS, raising=False)


def test_leave_mark_without_a_launcher_does_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert marks.announce(0) is None
    assert not marks.leave_mark("failed", 0, "why")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_leave_mark_with_a_run_dir_writes_the_first_line_once(tmp_path, monkeypatch):
    monkeypatch.setenv(environment.RUN_DIR, str(tmp_path))
    for reason in ("one\nmore", "two"):
        marks.leave_mark("failed", 1, reason)
    assert marks.mark_file(str(tmp_path), "failed", 1).read_text() == "one"


def test_announce_with_a_run_dir_records_the_process_id(tmp_path, monkeypatch):
    monkeypatch.setenv(environment.RUN_DIR, str(tmp_path))
    descriptor = marks.announce(1)
    try:
        assert marks.pid_file(str(tmp_path), 1).read_text() == str(os.getpid())
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("mark", "text", "expected"),
    [
        ("failed", "why\nmore", "why"),
        ("traceback", "line\n" * 500 + 'é \0 "', "line\n" * 500 + 'é \0 "'),
        ("traceback", "x" * 99_999, "x" * 16_000),
    ],
)
def test_leave_mark_with_a_token_writes_what_the_filter_reads(
    mark, text, expected, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv(environment.MARKS, "token")
    assert marks.announce(1) is None
    assert marks.leave_mark(mark, 1, text)
    mark_filter = MarkFilter(str(tmp_path), rank=1, token="token", log=MpirunLog())
    assert mark_filter.feed(capfd.readouterr().err.encode()) == b""
    assert marks.read(str(tmp_path), mark, 1) == expected
    os.close(int(environment.get(environment.MARKS).partition("/")[2]))


def test_leave_mark_in_a_child_process_writes_nothing(monkeypatch, capfd):
    monkeypatch.setenv(environment.MARKS, f"token:{os.getpid() + 1}/2")
    marks.leave_mark("done", 1)
    assert capfd.readouterr().err == ""


def test_pid_file_is_the_users_alone_and_locked_while_its_rank_lives(
    tmp_path, monkeypatch
):
    """By the lock `end_ranks` knows that the id is still that of the rank."""
    monkeypatch.setenv(environment.RUN_DIR, str(tmp_path))
    before = os.umask(0)
    try:
        descriptor = marks.announce(1)
    finally:
        os.umask(before)
    path = marks.pid_file(str(tmp_path), 1)
    assert path.stat().st_mode & 0o777 == 0o600
    lock = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), 6)"  # EX | NB
    command = [sys.executable, "-c", lock, str(path)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
    os.close(descriptor)
    assert subprocess.run(command, check=False).returncode == 0


def test_report_unjoined_on_a_full_disk_raises_nothing(tmp_path, monkeypatch):
    marks.mark_file(str(tmp_path), "joining", 0).touch()
    marks.mark_file(str(tmp_path), "done", 1).touch()
    assert marks.unjoined(str(tmp_path), 2) == ([0], [1])

    def write_text(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_text)
    marks.report_unjoined(str(tmp_path), 2)


def test_all_gone_with_the_process_id_of_another_user_counts_the_rank_as_gone(
    tmp_path, monkeypatch
):
    """The system gives ids again, and a signal to another user's process fails."""
    marks.pid_file(str(tmp_path), 0).write_text("7")

    def kill(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert marks.all_gone(str(tmp_path), 1)
