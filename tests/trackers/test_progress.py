"""Progress: what rank 0 prints, on a terminal and elsewhere."""

import re

import pytest

from mlxdist.launcher import environment
from mlxdist.trackers.progress import Progress, make_console
from mlxdist.trackers.report import Report

HOSTS = ["mac1", "mac2[x]"]


def report(step, **values):
    by_rank = {"step_time": [0.25, 0.5], "wait_time": [0.2, float("nan")]}
    if "train_loss" not in values:
        return Report(step, values, {}, {})
    return Report(step, {**values, "step_time": 0.375}, by_rank, {})


@pytest.fixture
def on_terminal(monkeypatch):
    """A function that makes this process a rank with a terminal, or without one."""

    def make(*, is_terminal):
        monkeypatch.setenv(environment.RANK, "0")
        monkeypatch.setenv(environment.COLUMNS, "70")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv(environment.TERMINAL, str(int(is_terminal)))

    return make


def show(kind="line", steps=4):
    progress = Progress(steps=steps, done=1, hosts=HOSTS, kind=kind, title="a [/title]")
    progress.start()
    progress.advance(2)
    progress.show(report(2, train_loss=1.5, tokens_per_second=1234.0))
    progress.advance(3)
    progress.show(report(4, train_loss=1.25, learning_rate=0.001))
    progress.show(report(4, val_loss=2.5))
    progress.close()


def test_output_that_is_no_terminal_gets_plain_lines(on_terminal, capsys):
    on_terminal(is_terminal=False)
    show()
    title, first, *others = capsys.readouterr().out.splitlines()
    assert title == "a [/title]"
    assert re.fullmatch(
        r"step 2/4   train_loss 1.500   1,234 tokens/s   \d+ s left", first
    )
    assert others == [
        "step 4/4   train_loss 1.250   learning rate 1.0e-03",
        "step 4/4   val_loss 2.500",
    ]


def test_row_for_each_rank_shows_what_it_has(on_terminal, capsys):
    on_terminal(is_terminal=False)
    show("ranks")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "mac1", "250", "200", "-"] in rows
    assert ["1", "mac2[x]", "500", "-", "-"] in rows
    assert rows.count(["0", "mac1", "250", "200", "-"]) == 2  # not at a validation


def test_terminal_gets_a_live_line_and_a_plain_one_at_the_end(on_terminal, capsys):
    on_terminal(is_terminal=True)
    show()
    out = capsys.readouterr().out
    assert out.count("a [/title]") >= 3
    assert "\x1b[?25l" not in out  # the cursor is not hidden: a kill would leave it so
    assert "step 3 of 4" not in out  # a tenth of a second has not passed
    assert "step 4 of 4" in out
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out).splitlines()[-1]
    figures = "train_loss 1.250   val_loss 2.500   1,234 tokens/s"
    assert last.startswith(f"step 4/4   {figures}")


def test_run_without_a_known_end_shows_no_time_left(on_terminal, capsys):
    on_terminal(is_terminal=False)
    show(steps=None)
    out = capsys.readouterr().out
    assert "step 2   train_loss" in out
    assert "left" not in out


def test_console_has_the_width_of_the_terminal_up_to_88(on_terminal, monkeypatch):
    on_terminal(is_terminal=True)
    assert (make_console().is_terminal, make_console().width) == (True, 70)
    monkeypatch.setenv(environment.COLUMNS, "200")
    assert make_console().width == 88
    monkeypatch.delenv(environment.TERMINAL)
    assert not make_console().is_terminal
