"""What `mlxdist doctor` says of what lies between hosts: networks, and each pair."""

from functools import partial
from itertools import combinations

import pytest

from mlxdist.doctor import diagnosis as findings
from mlxdist.doctor import link_job as links
from tests.doctor.test_diagnosis import answer, bad


def test_links():
    pairs = [
        {"ranks": [0, 1], "latency": 2e-5, "bandwidth": 9e8},
        {"ranks": [0, 2], "latency": 2e-5, "bandwidth": 1e8},
    ]
    told = {"exact": True, "ranks": 3, "pairs": pairs}
    good, fast, slow = findings.of_links(told, ["a", "b", "c"])
    assert (good.level, fast.level, slow.level) == ("ok", "ok", "warning")
    assert fast.found == "a - b: 20 us, 900 MB/s each way at once"
    wrong, *_ = findings.of_links({**told, "exact": False}, ["a", "b", "c"])
    assert wrong.level == "failure"
    (broken,) = findings.of_links({"error": "why", "command": "how"}, [])
    assert (broken.level, broken.found) == ("failure", "why")
    assert broken.mend.startswith("how ")


@pytest.mark.parametrize("size", range(1, 10))
def test_pairings_meet_each_pair_once(size):
    rounds = list(links.pairings(size))
    met = [pair for pairs in rounds for pair in pairs]
    assert sorted(met) == list(combinations(range(size), 2))
    for pairs in rounds:
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))


def test_hosts_without_a_common_network():
    other = {"ifconfig": "en0: flags=1<UP>\n\tinet 10.0.0.2 netmask 0xffffff00\n"}
    (one,) = bad(("mac2", answer("mac2", network=other)))
    assert (one.check, one.level) == ("shared network", "warning")


def test_a_network_that_is_asked_for_and_not_there():
    hosts = {"mac1": answer("mac1"), "mac2": answer("mac2")}
    asked = partial(findings.shared_network, hosts)
    assert asked("169.254.0.0/16").level == "ok"
    assert asked("bridge0").level == "ok"  # a machine that tells nothing of its own
    hosts["mac2"]["network"] = {
        "ifconfig": "en0: flags=1<UP>\n\tinet 10.0.0.2 netmask 0xffffff00\n"
    }
    found = asked("169.254.0.0/16")
    assert found.level == "failure"
    assert found.found.startswith("mac2 not in 169.254.0.0/16: mac1: bridge0 (")
