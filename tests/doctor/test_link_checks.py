"""doctor/link_checks: findings in the report of the job over all hosts."""

from mlxdist.doctor import diagnose_links

REPORT = {
    "exact": True,
    "ranks": 3,
    "pairs": [
        {"ranks": [0, 1], "latency": 2e-5, "bandwidth": 9e8},
        {"ranks": [0, 2], "latency": 2e-5, "bandwidth": 1e8},
    ],
}


def test_check_pairs_less_than_half_the_bandwidth_is_a_warning():
    exact, fast, slow = diagnose_links(REPORT, ["a", "b", "c"])
    assert (exact.level, fast.level, slow.level) == ("ok", "ok", "warning")
    assert fast.message == "a - b: 20 us, 900 MB/s in both directions at once"


def test_check_sums_wrong_sums_are_a_failure():
    wrong, *_ = diagnose_links({**REPORT, "exact": False}, ["a", "b", "c"])
    assert wrong.level == "failure"


def test_diagnose_links_failed_job_is_the_only_finding():
    (failed,) = diagnose_links({"error": "why", "command": "how"}, [])
    assert (failed.level, failed.message) == ("failure", "why")
    assert failed.remedy.startswith("how ")
