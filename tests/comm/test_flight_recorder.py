"""Recorder: the rank's status and its last collectives."""

import json
import time

import pytest

from mlxdist.comm.flight_recorder import RankInfo, Recorder

INFO = RankInfo(rank=3, size=4, host="h", pid=1, stack=[])


def test_call_sets_the_status_and_ignores_calls_inside_it():
    recorder = Recorder()
    with recorder.call("update", 5):
        recorder.phase("exchange")
        with recorder.call("agree", 1):
            assert str(recorder.status) == "in update, exchange, step 5"
    assert str(recorder.status) == "in user code, after step 5"


def test_status_at_an_error_is_that_of_the_call_which_raised_it():
    recorder = Recorder()

    def fail():
        with recorder.call("update", 5):
            recorder.phase("exchange")
            raise KeyError

    with pytest.raises(KeyError) as caught:
        fail()
    assert recorder.status_at(caught.value) == "in update, exchange, step 5"
    assert recorder.status_at(KeyError()) == "in user code, after step 5"


def test_recorder_of_a_split_shares_the_status_but_numbers_no_collectives():
    parent = Recorder()
    split = Recorder(parent)
    assert split.status is parent.status
    assert [r.started("all_sum").sequence for r in (parent, split, parent)] == [1, 1, 2]


def test_record_names_the_bucket_that_it_carries():
    recorder = Recorder()
    with recorder.call("update", 5), recorder.carrying("bucket 0: w and 1 more"):
        record = recorder.started("all_sum", 9, "mlx.core.float32", 36)
    text = "all_sum of 9 float32 (bucket 0: w and 1 more) in update, step 5"
    assert str(record) == text
    assert recorder.started("all_sum").contents == ""


def test_waiting_spans_name_the_phase():
    recorder = Recorder()
    recorder.keep_timeline()
    with recorder.call("update", 5):
        with recorder.waiting():
            recorder.phase("exchange")
        with recorder.waiting():
            pass
    with recorder.waiting():
        pass
    names = [span.name for span in recorder.spans if span.kind == "waiting"]
    assert names == ["waiting in exchange", "waiting in exchange", "waiting"]


def test_waits_add_up_over_a_world_and_those_that_are_split_from_it():
    recorder = Recorder()
    part = Recorder(parent=recorder)
    for each in (recorder, part):
        with each.call("update"), each.waiting():
            time.sleep(0.01)
    with part.call("save_checkpoint"), part.waiting():
        time.sleep(0.1)
    waits = recorder.waits
    assert list(waits.by_call) == ["update", "save_checkpoint"]
    assert waits.by_call["update"] >= 0.02
    assert waits.by_call["save_checkpoint"] >= 0.1
    assert waits.seconds(without=["save_checkpoint"]) == waits.by_call["update"]
    assert part.waits.seconds() == waits.seconds() == sum(waits.by_call.values())


def test_text_has_a_line_on_the_rank_and_one_for_each_of_the_last_512():
    recorder = Recorder()
    for _ in range(600):
        recorder.started("all_sum", 9, "float32", 36)
    first, *records = map(json.loads, recorder.text(INFO).splitlines())
    assert (first["host"], first["sequence"]) == ("h", 600)
    assert [record["sequence"] for record in records] == [*range(89, 601)]
