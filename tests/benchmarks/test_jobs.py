"""Jobs of contenders that run side by side: common/jobs.py, ranks/protocol.py."""

import os
import sys
import time

import pytest
from common.jobs import Job, running

RANK = """
import os, sys, time
from ranks.protocol import serve_requests
def handle(action):
    if action == "fail" and sys.argv[1] == "1":
        raise ValueError("cannot do it")
    if action != "reply":
        time.sleep(60)
    return {"pid": os.getpid(), "cpu": time.process_time()}
serve_requests(int(sys.argv[1]), handle)
"""


def make_job(name="job", ranks=2):
    commands = [[sys.executable, "-c", RANK, str(rank)] for rank in range(ranks)]
    return Job(name, ranks, commands)


def test_request_returns_replies_by_rank_while_other_jobs_sleep():
    with running([make_job("one"), make_job("other")]) as jobs:
        first = jobs.request("one", action="reply")
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            jobs.request("other", action="reply")
        last = jobs.request("one", action="reply")
    assert [reply["pid"] for reply in first] == [reply["pid"] for reply in last]
    assert all(b["cpu"] - a["cpu"] < 0.1 for a, b in zip(first, last, strict=True))
    for reply in first:
        with pytest.raises(ProcessLookupError):
            os.kill(reply["pid"], 0)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("fail", "cannot do it"),
        pytest.param("sleep", "before the timeout", marks=pytest.mark.long),
    ],
)
def test_request_that_fails_or_hangs_names_the_job_and_its_output(
    action, message, monkeypatch
):
    monkeypatch.setattr("common.jobs.EXIT_TIMEOUT", 0.5)
    with (
        pytest.raises(RuntimeError, match=f"(?s)job: .*{message}"),
        running([make_job()], timeout=1.0) as jobs,
    ):
        jobs.request("job", action=action)


def test_running_names_a_job_that_does_not_start():
    dead = Job("dead", 1, [[sys.executable, "-c", "raise SystemExit('no such')"]])
    with pytest.raises(RuntimeError, match=r"(?s)dead: .*no such"), running([dead]):
        pass
