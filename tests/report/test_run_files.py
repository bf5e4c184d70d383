"""The files of a run's folder: missing, torn and hostile ones."""

import json
import os
from math import inf

import pytest

from mlxdist.report.run_files import flat, parse_metrics, read_run
from tests.support.traces import chrome_events

LINE = '{"step": 1, "train_loss": 2.5}\n'


def test_metrics_are_in_the_order_of_their_steps():
    metrics = parse_metrics('{"step": 2, "loss": 1}\n{"step": 1, "loss": NaN}\n\n')
    (first, second), skipped = metrics.points("train_loss", "loss"), metrics.skipped
    assert (first[0], first[1] != first[1], second, skipped) == (1, True, (2, 1), 0)
    assert metrics.last("loss") == 1
    assert metrics.last("val_loss") is None


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "tra',
        "[1]",
        "7",
        '{"step": "1"}',
        '{"loss": 1}',
        "[" * 100_000,
        '{"step": NaN}',
        '{"step": 1' + "0" * 400 + "}",
        '{"step": true}',
        "\0\1",
    ],
)
def test_line_that_is_no_report_is_skipped_and_counted(line):
    metrics = parse_metrics(LINE + line + "\n" + LINE)
    assert (len(metrics.rows), metrics.skipped) == (2, 1)


def test_values_that_are_no_numbers_are_left_out():
    (row,) = parse_metrics('{"step": 1, "a": "x", "b": Infinity, "c": []}').rows
    assert row == {"step": 1, "b": inf}


def test_null_stands_for_a_value_that_is_not_finite():
    metrics = parse_metrics('{"step": 1, "loss": 2}\n{"step": 2, "loss": null}')
    (_, first), (_, second) = metrics.points("loss")
    assert (first, second != second) == (2, True)
    assert metrics.last("loss") == 2


def test_run_has_what_is_there_and_says_what_is_missing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(LINE)
    run = read_run(tmp_path)
    assert run.metrics.last("train_loss") == 2.5
    assert [run.config, run.outcome, run.breakdown, run.problems] == [
        None,
        None,
        None,
        [],
    ]
    command = f"`mlxdist run --timeline {tmp_path}/timeline.json` writes one when"
    assert any(command in line for line in run.missing)
    assert len(run.missing) == 3


def test_run_of_whole_files_has_them_all(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(LINE)
    (tmp_path / "run.json").write_text('{"ranks": 2}')
    (tmp_path / "failure.json").write_text('{"exit_code": 0}')
    events = {"traceEvents": chrome_events()}
    (tmp_path / "timeline.json").write_text(json.dumps(events))
    run = read_run(str(tmp_path))
    assert (run.missing, run.problems) == ([], [])
    assert (run.config, run.outcome) == ({"ranks": 2}, {"exit_code": 0})
    assert run.breakdown.wall == 10


@pytest.mark.parametrize("name", ["timeline.json", "failure.json"])
def test_file_that_is_older_than_the_run_is_said_to_be(name, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "timeline.json").write_text(
        json.dumps({"traceEvents": chrome_events()})
    )
    (tmp_path / "failure.json").write_text("{}")
    os.utime(tmp_path / name, (1, 1))
    (problem,) = read_run(tmp_path).problems
    assert problem.startswith(f"{name} is older than run.json")


def test_file_that_is_torn_is_a_problem_and_not_an_error(tmp_path):
    for name in ("run.json", "failure.json", "timeline.json"):
        (tmp_path / name).write_text('{"ranks": [')
    (tmp_path / "metrics.jsonl").mkdir()
    run = read_run(tmp_path)
    assert len(run.problems) == 4
    assert run.missing == []


def test_file_of_another_kind_is_a_problem(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    (tmp_path / "elsewhere").write_text(LINE)
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    assert [line.partition(" ")[0] for line in read_run(tmp_path).problems] == [
        "metrics.jsonl",
        "run.json",
    ]


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has none of metrics.jsonl, run.json"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        read_run(tmp_path / "none")


def test_configuration_is_shown_by_paths():
    value = {
        "options": {"shard": "elements", "betas": [0.9, 0.999]},
        "x": None,
        "e": {},
        "n": 12345,
        "t": True,
    }
    assert flat(value) == [
        ("options.shard", "elements"),
        ("options.betas", "0.9, 0.999"),
        ("x", "null"),
        ("e", "{}"),
        ("n", "12,345"),
        ("t", "true"),
    ]
