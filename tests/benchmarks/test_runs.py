"""The benchmarks themselves: small runs of each, and the turns that jobs take."""

import json
import os
import signal
import subprocess
import sys
import time

import common
import pytest
from common.turns import Player, Turns
from parts import step_cases
from parts.phases import END, PhaseClock
from parts.shapes import shapes_of

from mlxdist.comm.flight_recorder import Recorder
from tests.support.jobs import ROOT, clean_environment, start


def run(folder, *arguments, timeout=90):
    """A benchmark's JSON, as it is written by a run from another folder."""
    target = folder / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "mlxdist.cli", "bench", *arguments, "--json", target],
        env=clean_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(folder) not in target.read_text()
    assert str(ROOT) not in target.read_text()
    return json.loads(target.read_text())


def test_step_measures_a_small_case(tmp_path):
    arguments = ("--quick", "--only", "100x1000", "--turns", "2")
    names = ["sharded", "upstream"]
    told = run(tmp_path, "step", *arguments, "--contenders", *names)
    assert told["command"].startswith("mlxdist bench step --quick --only 100x1000")
    (case,) = told["cases"].values()
    assert case["parameters"] == 100_000
    for name in names:
        samples = case["samples"][name]
        assert len(samples) == 4
        assert all(0 < seconds < 5 for seconds in samples)
    assert list(case["ratios"]) == ["sharded / upstream"]
    assert 0.01 < case["ratios"]["sharded / upstream"]["ratio"] < 100
    phases = case["phases"]["sharded"]
    assert phases.pop("waiting") < sum(phases.values()) < 5
    assert (tmp_path / "result.png").stat().st_size > 1000
    assert (tmp_path / "result.svg").read_text().startswith("<?xml")


def test_memory_of_a_small_model_is_near_its_formula(tmp_path):
    arguments = ("--only", "sharded", "--ranks", "2", "--tensors", "1M", "--steps", "2")
    (found,) = run(tmp_path, "memory", *arguments)["measured"]
    assert found["parameters"] == 4 * step_cases.Case("1M", "float32", 1, 1).parameters
    assert found["parameters"] <= found["state"] < 1.1 * found["parameters"]
    assert 0.5 < found["peak / formula"] < 2.5
    assert found["bare"] < found["steady"] <= found["peak"]


def test_contenders_of_train_learn_the_same(tmp_path):
    arguments = ("--quick", "--turns", "1", "--places", "one machine")
    told = run(tmp_path, "train", *arguments, "--contenders", "ours", "upstream")
    place = told["places"]["one machine"]
    assert place["losses"]["ours"] == pytest.approx(place["losses"]["upstream"], 1e-3)
    tokens = 2 * told["settings"]["rows"] * told["settings"]["context"]
    for kind, seconds in place["samples"].items():
        assert place["tokens_per_second"][kind] == pytest.approx(tokens / seconds[0])
        assert seconds[0] > 0.2 * place["compute_seconds"]


@pytest.mark.parametrize("size", ["1M", "10M", "50M", "200M"])
def test_sizes_are_what_they_are_called(size):
    case = step_cases.Case(size, "float32", 1, 1)
    assert case.parameters == pytest.approx(int(size[:-1]) * 1e6, rel=0.01)
    assert shapes_of(size)["layers.0.mlp.up.weight"][0] % 256 == 0
    assert len(shapes_of("2000x1000")) == 2000
    with pytest.raises(ValueError, match="wanted such as"):
        shapes_of("50 million")


def test_every_pair_shares_a_launch_that_fits_into_memory():
    wanted = [*step_cases.OURS, step_cases.UPSTREAM, step_cases.ALLOCATOR]
    case = step_cases.Case("200M", "float32", 1, 1)
    pairs = step_cases.pairs(case, wanted)
    for trim in (False, True):
        room = max(step_cases.need(case, pair, 2, trim=trim) for pair in pairs)
        launches = step_cases.launches(case, wanted, 2, room)
        assert len(launches) > 1
        for launch in launches:
            assert launch.trim == trim
            assert step_cases.need(case, launch.names, 2, trim=trim) <= room
        for pair in pairs:
            assert any(set(pair) <= set(launch.names) for launch in launches)
    (whole,) = step_cases.launches(case, wanted, 2, 10**12)
    assert set(whole.names) == {name for pair in pairs for name in pair}


def test_phases_add_up_to_the_step():
    recorder = Recorder()
    clock = PhaseClock(recorder)
    began = time.perf_counter()
    with clock.running(), recorder.call("update", 1):
        recorder.phase("exchange")
        with recorder.waiting():
            time.sleep(0.02)
    whole = time.perf_counter() - began
    (spent,) = clock.take()
    assert 0.02 <= spent.pop("waiting") <= spent["exchange"]
    assert END in spent
    assert sum(spent.values()) == pytest.approx(whole, abs=0.01)
    recorder.phase("afterwards")
    assert clock.take() == []


PLAYER = """
import os, sys, time
from common.turns import answer_turns
def turn(what):
    if what == "fail":
        raise ValueError("it can't be done")
    if what == "sleep":
        time.sleep(60)
    return {"pid": os.getpid(), "cpu": time.process_time()}
answer_turns(int(sys.argv[1]), turn)
"""


def player(name="player", ranks=2):
    commands = [[sys.executable, "-c", PLAYER, str(rank)] for rank in range(ranks)]
    return Player(name, ranks, commands)


def test_replies_come_by_rank_and_who_waits_takes_no_time():
    with Turns([player("one"), player("other")]) as turns:
        first = turns.ask("one", what="be there")
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            turns.ask("other", what="be there")
        again = turns.ask("one", what="be there")
    assert [told["pid"] for told in first] == [told["pid"] for told in again]
    assert all(b["cpu"] - a["cpu"] < 0.1 for a, b in zip(first, again, strict=True))
    for told in first:
        with pytest.raises(ProcessLookupError):
            os.kill(told["pid"], 0)


@pytest.mark.parametrize(
    ("what", "told"), [("fail", "it can't be done"), ("sleep", "took too long")]
)
def test_who_fails_or_hangs_is_named_with_its_last_words(what, told, monkeypatch):
    monkeypatch.setattr("common.turns.PATIENCE", 0.5)
    with (
        pytest.raises(RuntimeError, match=f"(?s)player: .*{told}"),
        Turns([player()], timeout=1.0) as turns,
    ):
        turns.ask("player", what=what)


def test_a_player_that_does_not_start_is_named():
    dead = Player("dead", 1, [[sys.executable, "-c", "raise SystemExit('no such')"]])
    with pytest.raises(RuntimeError, match=r"(?s)dead: .*no such"), Turns([dead]):
        pass


def test_an_ended_benchmark_takes_its_jobs_with_it(tmp_path):
    arguments = ("--quick", "--only", "1M float32", "--turns", "500")
    script = str(common.BENCHMARKS / "step.py")
    names = ("--contenders", "sharded", "upstream")
    with start([sys.executable, script, *arguments, *names], cwd=tmp_path) as running:
        ranks = wait_for(lambda: mpi_ranks(running.pid))
        time.sleep(1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 128 + signal.SIGTERM
    wait_for(lambda: not [pid for pid in ranks if alive(pid)])


def mpi_ranks(driver):
    """The processes that a benchmark started, once there are all of them."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True
    ).stdout.splitlines()
    parents = {int(line.split()[0]): int(line.split()[1]) for line in listed}
    mpiruns = [pid for pid, parent in parents.items() if parent == driver]
    ranks = [pid for pid, parent in parents.items() if parent in mpiruns]
    return ranks if len(ranks) >= 4 else None


def alive(pid):
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
