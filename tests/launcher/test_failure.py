"""The account of a failure: one traceback, no words of mpirun, and the record."""

import json
import os
import socket

import pytest

from mlxdist.launcher import failure, marks
from mlxdist.launcher.message_filter import MessageFilter
from mlxdist.launcher.outcome import RankOutcome
from mlxdist.world import postmortem

BOTH = """
import sys, mlxdist
world = mlxdist.init(timeout=20)
def loss(batch):
    raise ValueError("bad batch")
if world.rank or "all" in sys.argv:
    loss(3)
world.barrier()
"""


@pytest.mark.parametrize(
    ("arguments", "ranks", "named"),
    [((), 2, "rank 1 of 2"), (("all",), 2, "ranks 0 and 1 of 2")],
)
def test_failure_has_one_traceback_and_names_step_place_and_record(
    run, tmp_path, arguments, ranks, named
):
    done = run(BOTH, *arguments, ranks=ranks, options=["--report", "report.json"])
    *trace, record, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert (trace[0], trace[-1]) == (
        "Traceback (most recent call last):",
        "ValueError: bad batch",
    )
    assert done.stderr.count("Traceback") == 1
    (folder,) = (tmp_path / "mlxdist-postmortem").iterdir()
    text = f"the last calls of all ranks: mlxdist doctor --postmortem {folder}"
    assert record == f"mlxdist run: {text}"
    where = "in user code, after step 0, at script.py:5, in loss"
    assert last.startswith(f"mlxdist run: {named} failed {where} (ValueError: bad ")
    assert "MPI_ABORT was invoked" in (folder / "mpirun.log").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["record"] == str(folder)


@pytest.mark.parametrize(
    ("line", "error", "explained"),
    [
        ("for i in range(a.world.size()):", "'int' object is not callable", True),
        ("f(g.rank)(3)", "'int' object is not callable", False),
        ("world.rank()", "'float' object is not callable", False),
        ("", "", False),
    ],
)
def test_call_of_a_rank_as_in_mlx_is_explained(line, error, explained):
    text = f'  File "x.py", line 3, in <module>\n    {line}\nTypeError: {error}\n'
    meaning = " a.world.size is a number, not a method: leave out the parentheses."
    assert failure.explain_call(text) == meaning * explained


def test_failure_of_all_ranks_with_labels_and_logs_is_in_each_log(run, tmp_path):
    source = "import sys\nprint('x', end='', file=sys.stderr)\n1 / 0\n"
    done = run(source, ranks=2, options=["--label", "--log-dir", "logs"])
    assert done.stderr.count("Traceback") == 1
    assert "] ZeroDivisionError: division by zero\nmlxdist run: ranks 0" in done.stderr
    for rank in (0, 1):
        log = (tmp_path / f"logs/rank-{rank}.log").read_text()
        assert log.endswith("ZeroDivisionError: division by zero\n")
    assert "prterun" in (tmp_path / "logs/mpirun.log").read_text()


def test_failure_that_the_script_reports_itself_is_left_to_it(run, tmp_path):
    source = "import sys\nsys.stderr = open('own.txt', 'w')\n1 / 0\n"
    done = run(source, ranks=1)
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "own.txt").read_text().startswith("Traceback")


PARSE = """
import argparse, mlxdist
mlxdist.init()
parser = argparse.ArgumentParser(prog="train.py")
parser.add_argument("--steps", type=int)
parser.add_argument("more", nargs="*")
{}
"""


def test_failure_of_a_command_line_is_printed_once_and_leaves_no_record(run, tmp_path):
    done = run(PARSE.format("parser.parse_args()"), "--steps", "x", ranks=2)
    assert done.returncode == 2
    assert done.stderr == (
        "usage: train.py [-h] [--steps STEPS] [more ...]\n"
        "train.py: error: argument --steps: invalid int value: 'x'\n"
        "mlxdist run: ranks 0 and 1 of 2 failed (exit 2); exit code 2.\n"
    )
    assert not (tmp_path / "mlxdist-postmortem").exists()


@pytest.mark.parametrize(
    "source",
    [
        "try: parser.parse_args()\nexcept SystemExit: pass",
        "import contextlib, sys\nwith contextlib.redirect_stderr(sys.stdout):\n"
        "    try: parser.parse_args()\n    except SystemExit: pass",
    ],
)
def test_usage_error_that_the_script_catches_is_printed_too(run, source):
    done = run(PARSE.format(source), "--steps", "x", ranks=2)
    assert done.returncode == 0
    assert (done.stdout + done.stderr).count("train.py: error: argument --steps") == 2


LEAVE = """
import os, sys, mlxdist
world = mlxdist.init()
def load():
    {}
if world.rank:
    load()
world.barrier()
"""
WAITS = "and waits for a rank that has exited"


@pytest.mark.parametrize(
    ("act", "first", "named", "cause"),
    [
        (
            "sys.exit('no data')",
            "no data",
            "rank 1 of 2 failed in user code, after step 0, at script.py:5, in load "
            "(exit no data); ",
            "rank 1 on {host} failed first, in user code, after step 0:\n"
            "  SystemExit: no data\n  at script.py:5, in load\n",
        ),
        (
            "sys.exit(0)",
            f"mlxdist: rank 0 on {{host}} is in barrier, step 0 {WAITS}:",
            f"rank 0 of 2 failed (it is in barrier, step 0 {WAITS}: ",
            "rank 0 on {host} ended the job: it is in barrier",
        ),
        (
            "os.kill(os.getpid(), 9)",
            "mlxdist run: the last calls of all ranks: mlxdist doctor --postmortem ",
            "rank 1 of 2 was killed by SIGKILL; ",
            "mlxdist run: rank 1 of 2 was killed by SIGKILL; rank 0 was ended with it; "
            "exit code 137.\nrank 1 left no record here: ",
        ),
    ],
)
def test_failure_without_an_exception_is_printed_once_and_leaves_a_record(
    run, tmp_path, act, first, named, cause
):
    done = run(LEAVE.format(act), ranks=2)
    *text, record, last = done.stderr.splitlines()
    host = socket.gethostname()
    assert [*text, record][0].startswith(first.format(host=host))
    assert last.startswith(f"mlxdist run: {named}rank")
    (folder,) = (tmp_path / "mlxdist-postmortem").iterdir()
    assert record.endswith(f"--postmortem {folder}")
    assert postmortem.report(folder).startswith(cause.format(host=host))


def test_timeline_that_the_script_does_not_write_is_reported(run, tmp_path):
    (tmp_path / "trace.json").write_text("of an earlier job")
    done = run("", ranks=1, options=["--timeline", "trace.json"])
    remark = "--timeline trace.json: there is none; the script joined no world"
    assert (done.returncode, done.stderr) == (0, f"mlxdist run: {remark}\n")
    assert not (tmp_path / "trace.json").exists()


def test_shown_has_each_different_text_once_and_at_most_three():
    texts = {5: "a", 1: "b", 2: "a", 3: "c", 0: "d"}
    assert failure.shown(texts) == {5: "a", 1: "b", 3: "c"}


def test_without_package_frames_keeps_those_of_the_user():
    package_file = failure.__file__
    text = (
        "Traceback (most recent call last):\n"
        '  File "/home/train.py", line 3, in <module>\n    update()\n    ^^^^^\n'
        f'  File "{package_file}", line 9, in take\n    raise ValueError\n'
        "ValueError: why\n  and more\n"
    )
    short = text.replace(
        f'  File "{package_file}", line 9, in take\n    raise ValueError\n', ""
    )
    assert failure.without_package_frames(text) == short
    package_only = text.replace("/home/train.py", package_file)
    assert failure.without_package_frames(package_only) == package_only


RULE = 74 * b"-" + b"\n"
ABORT = [RULE, b"MPI_ABORT was invoked on rank 1 in communicator\n", b"  x\n", RULE]


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([*ABORT, b"\0text\n"], b"text\n"),
        ([*ABORT, *ABORT, b"\0", b"a\0b\n"], b"a\0b\n"),
        ([RULE, b"a table of the job\n", RULE], RULE + b"a table of the job\n" + RULE),
        ([RULE, *ABORT], RULE),
        (ABORT[:3], b"".join(ABORT[:3])),
        ([b"\0 of the job\n", b"MPI_ABORT was invoked on rank 1\n"], None),
        ([RULE, b"There are not enough slots\n", RULE], None),
        ([RULE, b"MPI_ABORT was invoked on rank 0 in a job of the job\n", RULE], None),
        ([RULE, b"prterun noticed that process rank 1 of a job\n", RULE], None),
    ],
)
def test_message_filter_takes_out_what_follows_from_a_failure(lines, shown):
    message_filter = MessageFilter(rank=1)
    text = b"".join(map(message_filter.feed, lines)) + message_filter.close()
    assert text == (b"".join(lines) if shown is None else shown)


@pytest.mark.parametrize("size", [1, 30, 10**6])
def test_message_filter_of_parts_of_lines_keeps_the_text_of_the_job(size):
    message_filter = MessageFilter(rank=1)
    text = b"- a list\n---" + b"".join([b"\n", *ABORT, b"\0 80%\n", RULE[:9]])
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    shown = b"".join(map(message_filter.feed, parts)) + message_filter.close()
    assert shown == b"- a list\n---\n 80%\n" + RULE[:9]
    assert MessageFilter(rank=1).feed(b"\r 10%") == b"\r 10%"


def test_message_filter_of_mpirun_takes_out_what_it_says_of_any_rank():
    message_filter = MessageFilter()
    lines = [RULE, b"prterun noticed that process rank 3 with PID 1\n", RULE, b"\0x\n"]
    assert b"".join(map(message_filter.feed, lines)) == b"x\n"
    assert message_filter.dropped == b"".join(lines[:3])


def test_tracebacks_begin_with_the_rank_that_failed_first(tmp_path):
    texts = {0: "ended with it", 1: "b", 2: "the cause", 3: "c", 4: "the cause"}
    for rank, text in texts.items():
        path = marks.mark_file(str(tmp_path), "traceback", rank)
        path.write_text(text)
        os.utime(path, (rank, 1 if rank == 2 else 2 + rank))
    ranks = [RankOutcome(rank, "failed") for rank in texts]
    assert list(failure.tracebacks(str(tmp_path), ranks)) == [2, 0, 1, 3, 4]
