"""metrics.jsonl: whole lines, whatever happens to the disk or to the job."""

import json
import math
import resource

import pytest

from mlxdist.trackers.json_lines import JsonLines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "a" / "metrics.jsonl"


@pytest.fixture
def limit_files():
    """A function that bounds the size of files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(nbytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))

    yield limit
    limit(soft)


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_line_is_in_the_file_at_once(path):
    lines = JsonLines(path)
    lines.log(1, {"train_loss": 0.5})
    assert path.read_text() == '{"step": 1, "train_loss": 0.5}\n'


def test_number_that_json_does_not_have_is_null(path):
    JsonLines(path).log(1, {"a": math.nan, "b": -math.inf, "left_out": {"a": [0]}})
    entry = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert entry == {"step": 1, "a": None, "b": None, "left_out": {"a": [0]}}


def test_full_disk_warns_once_and_takes_half_a_line_back(path, limit_files):
    lines = JsonLines(path)
    lines.log(1, {"x": 1.0})
    before = path.read_text()
    limit_files(len(before) + 5)
    with pytest.warns(UserWarning, match=r"metrics.jsonl can't be written: File too"):
        lines.log(2, {"x": 1.0})
    assert path.read_text() == before
    lines.log(3, {"x": 1.0})  # without a warning
    limit_files(2**20)
    lines.log(4, {"x": 1.0})
    assert steps_of(path) == [1, 2, 3, 4]
    lines.finish()


def test_lines_that_are_never_written_are_counted_at_the_end(path, limit_files):
    lines = JsonLines(path)
    limit_files(3)
    with pytest.warns(UserWarning, match="can't be written"):
        lines.log(1, {})
    lines.log(2, {})
    with pytest.warns(UserWarning, match="metrics.jsonl lacks its last 2 lines"):
        lines.finish()
    lines.finish()
    assert path.read_text() == ""


@pytest.mark.parametrize(
    "line",
    ['{"step": 2, "tr', '{"step": 9}', "[1]", "null", '{"time": 1}', '{"step": "1"}'],
)
def test_resumed_file_drops_later_steps_and_what_is_no_entry(path, line):
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 1}\n{"step": 2, "x": 3}\n' + line)
    lines = JsonLines(path, done=2)
    assert lines.earlier == [{"step": 1}, {"step": 2, "x": 3}]
    lines.log(3, {})
    assert steps_of(path) == [1, 2, 3]


def test_resumed_run_without_a_file_begins_one(path):
    lines = JsonLines(path, done=5)
    lines.log(6, {})
    assert (lines.earlier, steps_of(path)) == ([], [6])


def test_new_runs_leave_all_earlier_files(path):
    for step in (1, 2, 3):
        JsonLines(path).log(step, {})
    earlier = [path.with_name(f"{path.name}.old{number}") for number in ("", "2")]
    assert [steps_of(each) for each in (*earlier, path)] == [[1], [2], [3]]


def test_link_in_the_place_of_the_file_is_not_followed(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("")
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        JsonLines(path)
    assert victim.read_text() == ""
