"""planner/measured_link: the link in the output of `mlxdist doctor --json`."""

import math

import pytest

from mlxdist.planner import LINKS, Link, Model, measured_link, step_time
from tests.support.doctor_report import doctor_report
from tests.support.plans import MB, make_entry, model_of

PAIRS = {"bandwidth": 2e8, "latency": 1e-5}, {"bandwidth": 1e8, "latency": 1e-6}


@pytest.mark.parametrize(
    ("computing", "both", "overlap"),
    [
        (1.0, 1.4, 0.0),  # one after the other
        (1.0, 1.25, 0.5),
        (1.0, 1.1, 1.0),  # all but the last of four buckets
        (1.0, 0.9, 1.0),  # the machine was faster during the exchange
        (0.2, 0.525, 0.5),  # the computation is shorter than the exchange
        (0.2, 0.7, 0.0),
    ],
)
def test_measured_link_overlap_is_the_saved_time(computing, both, overlap):
    exchange = {"buckets": 4, "bytes": 4e6, "seconds": 0.4}
    exchange |= {"computing": computing, "both": both}
    link = measured_link(doctor_report(*PAIRS, exchange=exchange))
    assert link.overlap == pytest.approx(overlap)
    time = step_time(model_of(MB), 2, "replicated", link, local=1.0)
    assert time.expected == pytest.approx(time.longest - overlap * time.overlappable)
    assert time.shortest <= time.expected <= time.longest
    named = step_time(model_of(MB), 2, "elements", LINKS["1gbe"], local=1.0)
    assert named.expected is None


def test_measured_link_is_the_slowest_pair():
    link = measured_link(doctor_report(*PAIRS))
    assert link == Link("measured", 1e8, 1e-5, cpu_per_byte=0.0, overlap=0.0)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        *((report, "no measured links") for report in ([], {}, {"links": {}})),
        ({"links": {"error": "x"}}, "no measured links"),
        (doctor_report(*PAIRS, hosts=["mac1", "mac1"]), "within one host"),
        (doctor_report({"bandwidth": -5, "latency": 1}), "its bandwidth is -5; wanted"),
        (doctor_report({"bandwidth": 1e8}), "its latency is None; wanted"),
        (doctor_report("x"), "its bandwidth is None; wanted"),
        (doctor_report(*PAIRS, exchange=None), "no exchange among all ranks"),
    ],
)
def test_measured_link_without_links_between_hosts_is_refused(report, message):
    with pytest.raises(ValueError, match=message):
        measured_link(report)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_measured_link_predicts_the_measured_exchange(ranks):
    exchange = {"buckets": 4, "bytes": 4e6, "seconds": 0.5}
    exchange |= {"computing": 0.5, "both": 1.0}
    link = measured_link(doctor_report(*PAIRS, ranks=ranks, exchange=exchange))
    entries = tuple(make_entry(f"{i}", (MB // 4,), "float32") for i in range(4))
    model = Model(entries, "adamw", MB)
    for strategy in ("replicated", "elements"):
        time = step_time(model, ranks, strategy, link, local=0.0)
        assert time.communication == pytest.approx(0.5)
    time = step_time(model, ranks + 1, "elements", link, local=0.0)
    growth = ranks / (ranks + 1) / ((ranks - 1) / ranks)  # of the bytes a rank sends
    assert time.communication == pytest.approx(0.5 * growth, rel=0.01)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, x) for name in ("bandwidth", "seconds", "bytes") for x in (0, -1)),
        *((name, -1) for name in ("latency", "computing", "both", "buckets")),
        *(("ranks", x) for x in (-1, 0, 1, 1e-320, 1e300)),
        *(("buckets", x) for x in (0, 1e-320)),
        *(
            (name, x)
            for name in ("bandwidth", "latency", "seconds", "both", "ranks", "bytes")
            for x in (math.nan, math.inf, 10**400, "1", None, True, [1], {})
        ),
        ("bandwidth", 1e-320),
    ],
)
def test_measured_link_with_an_impossible_number_is_refused(name, value):
    report = doctor_report(*map(dict, PAIRS))
    links = report["links"]
    objects = (links["pairs"][1], links, links["exchange"])
    (fields,) = [each for each in objects if name in each]
    fields[name] = value
    with pytest.raises(ValueError, match=f"its {name} is .*; wanted the output of"):
        measured_link(report)


@pytest.mark.parametrize("hosts", [5, {"a": 1}, "ab", None, [["a"], ["a"]]])
def test_measured_link_with_damaged_hosts_is_refused(hosts):
    with pytest.raises(ValueError, match="within one host"):
        measured_link(doctor_report(*PAIRS, hosts=hosts))
