"""The last line of `mlxdist run`."""

import os

import pytest

from mlxdist.launcher.outcome import RankOutcome
from mlxdist.launcher.summary import conclude, describe


def outcomes(*states):
    """Return outcomes of ranks on h0, h0, h1, h1 and so on; a dict gives the fields."""
    return tuple(
        RankOutcome(rank, host=f"h{rank // 2}", **fields)
        for rank, fields in enumerate(
            {"state": x} if isinstance(x, str) else {"state": "failed", **x}
            for x in states
        )
    )


EXIT = {"reason": "exit 3"}


@pytest.mark.parametrize(
    ("states", "text"),
    [
        (["finished"], "the rank finished"),
        (["finished"] * 3, "all ranks finished"),
        (["killed", "finished"], "rank 0 of 2 did not finish"),
        (["ended", EXIT], "rank 1 of 2 failed (exit 3); rank 0 was ended with it"),
        (["killed"] * 3 + ["finished"], "ranks 0 to 2 of 4 did not finish"),
        (
            ["killed", "ended", EXIT, "ended"],
            "rank 2 of 4 failed (exit 3); rank 0 of 4 did not finish; ranks 1 and 3 "
            "were ended with it",
        ),
        (
            [{"reason": str(number)} for number in range(7)],
            "rank 0 of 7 failed (0); rank 1 of 7 failed (1); rank 2 of 7 failed (2); "
            "4 more failed with other errors",
        ),
        (
            ["ended", {**EXIT, "step": "in user code", "location": "/a/b.py:3, in f"}],
            "rank 1 of 2 failed in user code, at /a/b.py:3, in f (exit 3); rank 0",
        ),
        (
            [
                {**EXIT, "location": "/b.py:3"},
                {**EXIT, "location": "/b.py:3", "step": "s"},
            ],
            "ranks 0 and 1 of 2 failed s, at /b.py:3 (exit 3)",
        ),
        (
            [{**EXIT, "location": "/b.py:3"}, {**EXIT, "location": "/b.py:5"}],
            "ranks 0 and 1 of 2 failed at /b.py:3 and /b.py:5 (exit 3)",
        ),
        (
            [{"reason": 200 * "x", "location": "/b.py:3"}],
            f"rank 0 of 1 failed at /b.py:3 ({160 * 'x'}...)",
        ),
        (
            [{"reason": "x", "location": f"{os.getcwd()}/b.py:3"}],
            "rank 0 of 1 failed at b.py:3 (x)",
        ),
        (
            [{"state": "killed", "signal": "SIGSEGV"}] * 2,
            "ranks 0 and 1 of 2 were killed by SIGSEGV",
        ),
    ],
)
def test_describe_names_ranks_by_their_state(states, text):
    assert describe(outcomes(*states)).startswith(text)


def test_describe_with_hosts_names_the_number_of_ranks_once():
    ranks = outcomes("killed", "killed", "killed", "finished")
    text = "ranks 0 and 1 of 4 on h0, rank 2 on h1 did not finish"
    assert describe(ranks, name_hosts=True) == text


@pytest.mark.parametrize(
    ("code", "options", "exit_code", "message"),
    [
        (3, {}, 3, "rank 0 of 2 failed (exit 3); exit code 3."),
        (0, {}, 1, "rank 0 of 2 failed (exit 3); mpirun exited with code 0."),
        (-9, {}, 137, "rank 0 of 2 failed (exit 3); mpirun was ended by SIGKILL."),
        (1, {"received": 2}, 130, "ended by SIGINT; rank 0 of 2 failed (exit 3)."),
        (1, {"time_limit": 9}, 124, "ended after --timeout 9 s; rank 0 of 2 failed"),
    ],
)
def test_conclude_gives_the_exit_code_and_its_cause(code, options, exit_code, message):
    outcome = conclude(code, outcomes(EXIT, "finished"), **options)
    assert outcome.exit_code == exit_code
    assert outcome.message.startswith(message)


@pytest.mark.parametrize(
    ("state", "exit_code", "message"),
    [
        ("finished", 0, "all ranks finished; mpirun lost touch with h1 after that."),
        ("killed", 213, "lost touch with h1; rank 1 of 2 did not finish; exit code 21"),
    ],
)
def test_conclude_of_a_lost_host_succeeds_if_its_ranks_had_finished(
    state, exit_code, message
):
    outcome = conclude(213, outcomes("finished", state), lost_hosts=["h1"])
    assert outcome.exit_code == exit_code
    assert outcome.message.startswith(message)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (EXIT, "rank 2 of 3 failed (exit 3); ranks 0 and 1 were ended with it; exit"),
        (
            {"state": "killed", "signal": "SIGKILL"},
            "rank 2 of 3 was killed by SIGKILL; ranks 0 and 1 were ended with it; exit",
        ),
    ],
)
def test_conclude_of_a_host_lost_after_its_rank_failed_names_the_rank(first, message):
    """Its daemon may be lost while mpirun ends the job."""
    ranks = outcomes("ended", "ended", first)
    outcome = conclude(3, ranks, lost_hosts=["h1"])
    assert outcome.message.startswith(message)
    assert outcome.lost_hosts == ("h1",)
    message = conclude(3, ranks, lost_hosts=["h0"]).message
    assert message.startswith("lost touch with h0; rank 2 of 3 ")


def test_conclude_of_finished_ranks_has_nothing_to_say_of_a_host_if_mpirun_has_not():
    assert conclude(0, outcomes("finished"), lost_hosts=["h0"]).message == ""
