"""What a rank reports of its failure, and the exit code that it ends with."""

import os

import pytest

from mlxdist.launcher import environment, marks, rank_failure


@pytest.fixture
def read_mark(monkeypatch, tmp_path):
    """Reads a mark of rank 1, where marks are files."""
    monkeypatch.setenv(environment.RUN_DIR, str(tmp_path))
    return lambda mark: marks.read(str(tmp_path), mark, 1)


@pytest.fixture
def handled(monkeypatch):
    """The exit codes that handlers of `on_exit` were called with."""
    codes = []
    handlers = [lambda _leaving, code: codes.append(code)]
    monkeypatch.setattr(rank_failure, "exit_handlers", handlers)
    return codes


@pytest.mark.parametrize(
    ("given", "code"), [(1, 1), (3, 3), (256, 1), (-1, 255), ("why", 1), (1.5, 1)]
)
def test_report_exit_returns_a_code_that_is_not_0(
    given, code, handled, read_mark, capsys
):
    assert rank_failure.report_exit(SystemExit(given), "1") == code
    assert handled == [code]
    assert read_mark("failed") == f"exit {given}"
    assert capsys.readouterr().err == ("" if isinstance(given, int) else f"{given}\n")


def test_report_exit_of_a_wrong_command_line_ends_no_world(handled, read_mark):
    assert rank_failure.report_exit(SystemExit(2), "1") == 2
    assert handled == []
    assert read_mark("location") is None


def test_report_error_leaves_the_reason_without_notes_and_the_users_line(
    read_mark, capsys
):
    error = ValueError("x\nmore")
    error.__notes__ = ["ValueError: a note"]
    try:
        raise error
    except ValueError as raised:
        rank_failure.report_error(raised, "1")
    assert read_mark("failed") == "ValueError: x"
    assert read_mark("location").startswith(f"{os.path.abspath(__file__)}:")
    assert "ValueError: x\nmore" in capsys.readouterr().err  # pytest's own stream
