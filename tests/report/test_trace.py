"""Traces: checked by the rules of Chrome's format, and read by rank."""

import json

import pytest

from mlxdist.comm.flight_recorder import Record, Span
from mlxdist.report.trace import Collective, Interval, problems, read_trace
from mlxdist.world.clocks import Alignment, Offset, same_clock
from mlxdist.world.trace_events import Process
from tests.support.traces import chrome_events

CALL = {"name": "u", "cat": "call", "ph": "X", "ts": 1e6, "dur": 2e6}
BEGIN = {"name": "s", "cat": "collectives", "ph": "b", "id": "0.1", "ts": 2e6}
BEGIN |= {"args": {"sequence": 1}}
END = {"name": "s", "cat": "collectives", "ph": "e", "id": "0.1", "ts": 3e6}


def write(path, events):
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_trace_that_mlxdist_writes_is_valid_and_read_back(tmp_path):
    late = Offset(0.0, 2.0, 5e-5)
    process = Process(
        1, 2, "h", 12.0, 19.0, 10.0, Alignment(late, late), True, is_complete=False
    )
    spans = [Span("call", "update", 3, 13.0, 15.0), Span("waiting", "w", 3, 13.5, 14.0)]
    records = [
        Record(7, "all_sum", "update", 3, 4, "float32", 16, 13.0, 14.0),
        Record(8, "all_sum", "update", 3, 4, "float32", 16, 14.0),
    ]
    root = Process(
        0, 2, "r", 10.0, 20.0, 10.0, Alignment(same_clock(), same_clock()), False, True
    )
    events = process.events(spans, records) + root.events([], [])
    assert list(problems(events)) == []
    first, second = read_trace(write(tmp_path / "t.json", events))
    assert (first.rank, first.start, first.end) == (0, 0.0, 10.0)
    assert (first.size, second.size) == (2, 2)
    assert (second.rank, second.host, second.overlaps) == (1, "h", True)
    assert second.calls == [Interval(1.0, 3.0, "update", 3)]
    assert second.waits == [Interval(1.5, 2.0, "w", 3)]
    assert second.collectives == [Collective(7, 1, 2), Collective(8, 2, None)]
    assert second.clock_error == 5e-5
    # Events before the first one may have been dropped.
    assert (second.start, second.end) == (1.0, 7.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"ph": "Q"}, "event 1 has ph 'Q', wanted one of M, X, b, e, i"),
        ({"ph": "XX"}, "event 1 has ph 'XX'"),
        ({"ph": ["X"]}, "event 1 has ph"),
        ({"ts": None}, "event 1 has no ts"),
        ({"ts": float("nan")}, "event 1 has no ts"),
        ({"ts": 10**400}, "event 1 has no ts"),
        ({"dur": -1}, "event 1 has no dur of 0 or more"),
        ({"dur": True}, "event 1 has no dur"),
        ({"tid": 1.5}, "event 1 has no integer tid"),
        ({"pid": "0"}, "event 1 has no integer pid"),
        ({"name": 3}, "event 1 has no name"),
        ({"cat": []}, "event 1 has a cat that is no text"),
        ({"args": []}, "event 1 has args that are no object"),
        ({"ph": "b"}, "event 1 has no id"),
    ],
)
def test_event_that_chrome_would_not_take_is_refused(change, problem, tmp_path):
    events = chrome_events(0, {**CALL, **change})
    with pytest.raises(ValueError, match=f"is no valid trace: {problem}"):
        read_trace(write(tmp_path / "t.json", events))


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([CALL, {**CALL, "ts": 2e6}], "overlaps another at ts 2000000"),
        ([CALL, {**CALL, "ts": 2e6, "dur": 1e6}], None),
        ([CALL, {**CALL, "ts": 3e6}], None),
        ([CALL, {**CALL, "ts": 2e6, "tid": 1}], None),
        ([BEGIN, END], None),
        ([BEGIN], "0.1 does not end"),
        ([END], "0.1 ends and did not begin"),
        ([BEGIN, {**END, "ts": 1e6}], "0.1 ends and did not begin"),
        ([BEGIN, BEGIN, END], "0.1 begins twice"),
    ],
)
def test_complete_events_nest_and_others_end_once(events, problem):
    found = list(problems(chrome_events(0, *events)))
    assert (found[:1] == []) if problem is None else (problem in found[0])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON"),
        ('{"traceEvents": [', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "has no list of traceEvents"),
        ('{"traceEvents": {}}', "has no list of traceEvents"),
        ('{"traceEvents": [7]}', "event 0 is no object"),
        ('{"traceEvents": []}', "has no events: the job still runs, or it was killed"),
        (
            '{"traceEvents": [{"name": "a", "ph": "M", "pid": 0}]}',
            "names no rank; wanted a trace that",
        ),
    ],
)
def test_file_that_is_no_trace_is_refused(text, problem, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_trace(path)


@pytest.mark.parametrize("value", ["x", None, True, [], float("nan")])
@pytest.mark.parametrize("key", ["rank", "size", "start", "end", "clock_error"])
def test_rank_with_a_wrong_value_is_refused(key, value, tmp_path):
    events = chrome_events()
    events[0]["args"][key] = value
    with pytest.raises(ValueError, match=r"t.json: an event lacks"):
        read_trace(write(tmp_path / "t.json", events))


def test_collective_without_a_sequence_number_is_refused(tmp_path):
    events = chrome_events(0, {**BEGIN, "args": {}}, END)
    with pytest.raises(ValueError, match="an event lacks 'sequence'"):
        read_trace(write(tmp_path / "t.json", events))
