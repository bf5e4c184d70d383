"""The chaos run itself: its schedule, its verdicts, and an hour of it."""

import dataclasses
import os

import pytest

from tests.chaos.chaos_run import ChaosRun, Result
from tests.chaos.kinds import Effect, all_kinds
from tests.chaos.plan import Configuration, Fault, Plan, read_plan
from tests.chaos.schedule import draw_plan
from tests.chaos.verdict import Observation, Verdict, judge
from tests.support import netns

KINDS = all_kinds()
DIGEST = "ab" * 32
TWO_RANKS = Configuration("adamw", 2, 18)
KILL = Fault("kill", 0, step=3, rank=1)
LATE = Fault("late", 0, step=3, rank=1)
KILLED = "mlxdist run: rank 1 of 2 was killed by SIGKILL; exit code 137.\n"
AGAIN = "mlxdist run: starts it again, 1 of 1.\n"
FINISHED = f"finished 0 0 {DIGEST}\nfinished 0 1 {DIGEST}\n"
RESTARTED = FINISHED.replace("d 0 ", "d 1 ")


def verdict_on(exit_code, *, faults=(KILL,), fired=(0,), restarts=0, **seen):
    plan = Plan(0, TWO_RANKS, faults=faults, max_restarts=restarts)
    observation = Observation(exit_code, fired=frozenset(fired), **seen)
    return judge(plan, observation, DIGEST, KINDS)


def test_plan_is_the_same_for_the_same_seed_and_number():
    plans = [[draw_plan(seed, n, KINDS) for n in range(80)] for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_plans_strike_with_every_kind_in_each_round():
    for start in range(0, 3 * len(KINDS), len(KINDS)):
        plans = [draw_plan(7, start + n, KINDS) for n in range(len(KINDS))]
        assert {fault.kind for plan in plans for fault in plan.faults} == set(KINDS)


def test_plans_give_each_fault_what_it_needs():
    for plan in (draw_plan(3, n, KINDS) for n in range(400)):
        ranks, hosts = plan.configuration.ranks, plan.hosts
        assert 2 <= ranks <= 4
        assert 1 <= hosts <= 4
        assert ranks % hosts == 0 or hosts == 1
        for fault in plan.faults:
            kind = KINDS[fault.kind]
            assert fault.attempt <= plan.max_restarts
            assert fault.rank < ranks
            assert fault.host < hosts
            assert (fault.step == 0) == kind.at_start
            assert 0.3 * kind.longest <= fault.seconds <= kind.longest
            assert kind.longest < plan.timeout  # it must not end the job
            assert hosts > 1 or not kind.needs_hosts
            assert plan.own_disks or not kind.needs_disks
            assert plan.time_limit or not kind.needs_limit
        ending = {
            fault.attempt
            for fault in plan.faults
            if KINDS[fault.kind].effect is not Effect.NONE
        }
        assert all(x.attempt - 1 in ending for x in plan.faults if x.attempt)


def test_plan_is_read_as_it_was_written(tmp_path):
    plan = draw_plan(1, 4, KINDS)
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan


def test_verdict_of_what_is_right():
    assert verdict_on(0, output=FINISHED) == Verdict("finished")
    assert verdict_on(0, output=FINISHED, fired=(), faults=()) == Verdict("finished")
    assert verdict_on(137, errors=KILLED) == Verdict("failed")
    seen = {"output": RESTARTED, "errors": KILLED + AGAIN}
    assert verdict_on(0, restarts=1, **seen) == Verdict("finished")


@pytest.mark.parametrize(
    ("reason", "exit_code", "seen"),
    [
        ("only these ranks finished", 0, {"output": ""}),
        ("only these ranks", 0, {"output": FINISHED.splitlines(True)[0]}),
        ("only these ranks", 0, {"output": FINISHED[:77] + RESTARTED[:77]}),
        ("other parameters", 0, {"output": FINISHED.replace("ab\n", "ac\n")}),
        ("other parameters", 1, {"output": f"finished 0 1 {'ac' * 32}\n"}),
        ("no fault that could", 137, {"errors": KILLED, "fired": ()}),
        ("no fault that could", 137, {"errors": KILLED, "faults": (LATE,)}),
        ("without a word", 137, {"errors": ""}),
        ("does not name", 137, {"errors": KILLED.replace("rank 1", "rank 0")}),
        ("started again 0 times", 137, {"errors": KILLED, "restarts": 1}),
        ("attempt 0 failed", 0, {"errors": AGAIN, "output": RESTARTED}),
        ("ended by signal 11", -11, {"errors": KILLED}),
        (
            "left behind: /dev/shm/x",
            137,
            {"errors": KILLED, "leftovers": ["/dev/shm/x"]},
        ),
        ("wanted {143}", 1, {"faults": (Fault("sigterm", 0, 3, 0),), "errors": KILLED}),
    ],
)
def test_verdict_of_what_is_wrong(reason, exit_code, seen):
    verdict = verdict_on(exit_code, **seen)
    assert verdict.outcome == "wrong"
    assert reason in verdict.reason


def test_verdict_of_a_job_that_had_to_be_killed_is_a_hang():
    assert verdict_on(-9, hung=True, errors=KILLED).outcome == "hang"
    assert verdict_on(0, hung=True, output=FINISHED).outcome == "hang"


def test_counts_have_a_job_once_for_each_kind_that_has_struck():
    run = ChaosRun(1)
    plan = Plan(0, TWO_RANKS, faults=(KILL, dataclasses.replace(KILL, attempt=1), LATE))
    seen = Observation(137, fired=frozenset({0, 1}))
    run.results.append(Result(plan, seen, Verdict("failed"), Verdict("finished")))
    run.results.append(Result(plan, seen, Verdict("failed"), Verdict("wrong")))
    run.results.append(Result(plan, seen, Verdict("hang"), None))
    assert run.counts()["kill"] == {"failed": 1, "wrong": 1, "hang": 1}
    assert not run.counts()["late"]
    rows = [line.split() for line in run.table().splitlines()]
    assert ["all", "jobs", "0", "1", "1", "1"] in rows


@pytest.mark.long
@pytest.mark.skipif(netns.problem() is not None, reason=str(netns.problem()))
def test_job_that_is_killed_ends_with_the_right_error_and_resumes_by_hand():
    result = ChaosRun(1).run_plan(Plan(0, TWO_RANKS, faults=(KILL,)))
    assert result.seen.exit_code != 0, result
    assert result.verdict == Verdict("failed"), result
    assert result.by_hand == Verdict("finished"), result


@pytest.mark.long
@pytest.mark.timeout(5400)
@pytest.mark.skipif(netns.problem() is not None, reason=str(netns.problem()))
def test_an_hour_of_faults_leaves_no_hang_and_no_wrong_result():
    run = ChaosRun(int(os.environ.get("CHAOS_SEED", "1")))
    for result in run.run_for(3600):
        print(result, flush=True)
    print(run.table())
    assert [str(result) for result in run.results if not result.is_good] == []
