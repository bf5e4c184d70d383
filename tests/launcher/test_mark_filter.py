"""Marks in a job's standard error."""

import pytest

from mlxdist.launcher import marks
from mlxdist.launcher.mark_filter import MarkFilter

MARK = b"\x1emlxdist token done 1 \n"


@pytest.fixture
def mark_filter(tmp_path):
    return MarkFilter(str(tmp_path), ranks=2, token="token")


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


def test_feed_of_a_tagged_mark_takes_its_tag_out(mark_filter):
    assert mark_filter.feed(b"[1,0]<stderr>: x\n[1,1]<stderr>: " + MARK) == (
        b"[1,0]<stderr>: x\n"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\x1emlxdist other done 1 \n",
        b"\x1emlxdist token finished 1 \n",
        b"\x1emlxdist token done x \n",
        b"\x1e",
    ],
)
def test_feed_of_what_is_no_mark_returns_it(mark_filter, data, tmp_path):
    assert mark_filter.feed(data) + mark_filter.close() == data
    assert marks.unfinished(str(tmp_path), 2) == [0, 1]


def test_feed_of_a_mark_of_an_unknown_rank_drops_it(mark_filter, tmp_path):
    assert mark_filter.feed(b"\x1emlxdist token done 7 \n") == b""
    assert list(tmp_path.iterdir()) == []


def test_feed_keeps_the_first_reason(mark_filter, tmp_path):
    for reason in (b"one", b"two"):
        mark_filter.feed(b"\x1emlxdist token failed 0 " + reason + b"\n")
    assert marks.mark_file(tmp_path, "failed", 0).read_text() == "one"
