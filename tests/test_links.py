"""What `mlxdist doctor` measures between each pair of hosts, and what it says of it."""

from itertools import combinations

import pytest

from mlxdist import findings, links


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
