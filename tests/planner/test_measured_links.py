"""What `mlxdist plan --measured` takes from what `mlxdist doctor --json` found."""

import math

import pytest

from mlxdist.layout.entries import Entry
from mlxdist.planner import memory_model as sizes
from mlxdist.planner import time_model as predict
from mlxdist.planner.memory_model import Model
from mlxdist.planner.time_model import LINKS, Link
from tests.support import examples

MB = 10**6


def of_size(elements):
    return sizes.model_of_size(elements, "float32", "adamw", bucket_size=MB)


@pytest.mark.parametrize(
    ("computing", "both", "hides"),
    [
        (1.0, 1.4, 0.0),  # one after the other
        (1.0, 1.25, 0.5),
        (1.0, 1.1, 1.0),  # all but the last of four buckets
        (1.0, 0.9, 1.0),  # the machine was faster meanwhile
        (0.2, 0.525, 0.5),  # there was little to hide behind
        (0.2, 0.7, 0.0),
    ],
)
def test_how_much_hides_is_what_was_saved(computing, both, hides):
    exchange = {"buckets": 4, "bytes": 4e6, "seconds": 0.4}
    exchange |= {"computing": computing, "both": both}
    link = predict.measured_link(examples.doctor_report(*PAIRS, exchange=exchange))
    assert link.hides == pytest.approx(hides)
    time = predict.step_time(of_size(MB), 2, "replicated", link, local=1.0)
    assert time.expected == pytest.approx(time.longest - hides * time.hidden)
    assert time.shortest <= time.expected <= time.longest
    named = predict.step_time(of_size(MB), 2, "elements", LINKS["1gbe"], local=1.0)
    assert named.expected is None


PAIRS = {"bandwidth": 2e8, "latency": 1e-5}, {"bandwidth": 1e8, "latency": 1e-6}


def test_measured_links():
    link = predict.measured_link(examples.doctor_report(*PAIRS))
    assert link == Link("measured", 1e8, 1e-5, work=0.0, hides=0.0)
    for told in ([], {}, {"links": {}}, {"links": {"error": "x"}}):
        with pytest.raises(ValueError, match="no measured links"):
            predict.measured_link(told)
    with pytest.raises(ValueError, match="within one host"):
        predict.measured_link(examples.doctor_report(*PAIRS, hosts=["mac1", "mac1"]))
    for pair in ({"bandwidth": -5, "latency": 1}, {"bandwidth": 1e8}, "x"):
        with pytest.raises(ValueError, match="wanted what `mlxdist doctor"):
            predict.measured_link(examples.doctor_report(pair))
    with pytest.raises(ValueError, match="no exchange of all ranks"):
        predict.measured_link(examples.doctor_report(*PAIRS, exchange=None))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_what_all_ranks_took_together_is_predicted_again(ranks):
    exchange = {"buckets": 4, "bytes": 4e6, "seconds": 0.5}
    exchange |= {"computing": 0.5, "both": 1.0}
    told = examples.doctor_report(*PAIRS, ranks=ranks, exchange=exchange)
    link = predict.measured_link(told)
    entries = tuple(Entry(f"{i}", (MB // 4,), "float32") for i in range(4))
    model = Model(entries, "adamw", MB)
    for mode in ("replicated", "elements"):
        found = predict.step_time(model, ranks, mode, link, local=0.0)
        assert found.wire == pytest.approx(0.5)
    more = predict.step_time(model, ranks + 1, "elements", link, local=0.0)
    part = ranks / (ranks + 1) / ((ranks - 1) / ranks)  # of what each sends
    assert more.wire == pytest.approx(0.5 * part, rel=0.01)


@pytest.mark.parametrize(
    ("place", "bad"),
    [
        *(
            (place, bad)
            for place in ("bandwidth", "seconds", "bytes")
            for bad in (0, -1)
        ),
        *((place, -1) for place in ("latency", "computing", "both", "buckets")),
        *(("ranks", bad) for bad in (-1, 0, 1, 1e-320, 1e300)),
        *(("buckets", bad) for bad in (0, 1e-320)),
        *(
            (place, bad)
            for place in ("bandwidth", "latency", "seconds", "both", "ranks", "bytes")
            for bad in (math.nan, math.inf, 10**400, "1", None, True, [1], {})
        ),
        ("bandwidth", 1e-320),
    ],
)
def test_numbers_that_can_not_be(place, bad):
    told = examples.doctor_report(*map(dict, PAIRS))
    links = told["links"]
    holders = (links["pairs"][1], links, links["exchange"])
    (holder,) = [one for one in holders if place in one]
    holder[place] = bad
    with pytest.raises(ValueError, match=f"its {place} is .*; wanted what `mlxdist"):
        predict.measured_link(told)


@pytest.mark.parametrize("hosts", [5, {"a": 1}, "ab", None, [["a"], ["a"]]])
def test_hosts_that_are_none(hosts):
    with pytest.raises(ValueError, match="within one host"):
        predict.measured_link(examples.doctor_report(*PAIRS, hosts=hosts))
