"""Marks in a job's standard error."""

import pytest

from mlxdist.launcher import marks
from mlxdist.launcher.mark_filter import MarkFilter
from mlxdist.launcher.mpirun_log import MpirunLog

MARK = b'\x1emlxdist token done 1 0 1 ""\n'


@pytest.fixture
def mark_filter(tmp_path):
    return MarkFilter(str(tmp_path), rank=1, token="token", log=MpirunLog())


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("data", "output"),
    [
        (b"before\n" + MARK + MARK + b"after\n", b"before\nafter\n"),
        (b"no end" + MARK + b"after", b"no endafter"),
        (b"\x1e" + MARK, b"\x1e"),
        (b"\x1emlxdist to" + MARK, b"\x1emlxdist to"),
        (b"\x1emlxdist token do" + MARK, b"\x1emlxdist token do"),
    ],
)
def test_feed_takes_marks_out(mark_filter, data, output, size, tmp_path):
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert b"".join(map(mark_filter.feed, pieces)) + mark_filter.close() == output
    assert marks.unfinished(str(tmp_path), 2) == [0]


@pytest.mark.parametrize(
    "data",
    [
        b'\x1emlxdist other done 1 0 1 ""\n',
        b'\x1emlxdist token finished 1 0 1 ""\n',
        b'\x1emlxdist token done x 0 1 ""\n',
        b"\x1emlxdist token done 1\n",
        b"\x1e",
    ],
)
def test_feed_of_what_is_no_mark_returns_it(mark_filter, data, tmp_path):
    assert mark_filter.feed(data) + mark_filter.close() == data
    assert marks.unfinished(str(tmp_path), 2) == [0, 1]


def test_feed_of_a_mark_of_another_rank_drops_it(mark_filter, tmp_path):
    assert mark_filter.feed(b'\x1emlxdist token done 7 0 1 ""\n') == b""
    assert list(tmp_path.iterdir()) == []


def test_feed_keeps_the_first_reason(mark_filter, tmp_path):
    for reason in (b"one", b"two"):
        mark_filter.feed(b'\x1emlxdist token failed 1 0 1 "' + reason + b'"\n')
    assert marks.read(str(tmp_path), "failed", 1) == "one"


def test_feed_joins_the_parts_of_a_long_mark(mark_filter, tmp_path):
    # The second copy of a part may be cut: mpirun reads a line in two pieces.
    for part, text in ((1, b'\\nwo"'), (1, b"\\nw"), (0, b'"one\\n'), (0, b"x")):
        line = b"\x1emlxdist token traceback 1 %d 2 %s\n" % (part, text)
        assert mark_filter.feed(line.replace(b"\\\\", b"\\")) == b""
    assert marks.read(str(tmp_path), "traceback", 1) == "one\n\nwo"
