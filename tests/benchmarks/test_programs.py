"""The benchmark programs, run as a user runs them, on small cases."""

import json
import signal
import subprocess
import sys
import time

import common
import pytest
from common import plots, step_cases

from mlxdist.launcher.cores import usable_cores
from tests.support.jobs import ROOT, clean_environment, start


def bench(folder, *arguments, timeout=110):
    """Run a benchmark from another folder and return its JSON result."""
    target = folder / "result.json"
    command = [sys.executable, "-m", "mlxdist.cli", "bench", *arguments]
    with start([*command, "--json", str(target)], cwd=folder) as running:
        try:
            out, err = running.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            running.terminate()  # it ends its jobs, which have sessions of their own
            out, err = running.communicate(timeout=100)
            pytest.fail(f"not done in {timeout} s: {command}\n{out}{err}")
    assert running.returncode == 0, out + err
    assert str(folder) not in target.read_text()
    assert str(ROOT) not in target.read_text()
    return json.loads(target.read_text())


def test_step_small_case_is_measured(tmp_path):
    arguments = ("--quick", "--only", "100x1000", "--turns", "2")
    names = ["sharded", "upstream"]
    result = bench(tmp_path, "step", *arguments, "--contenders", *names)
    assert result["command"].startswith("mlxdist bench step --quick --only 100x1000")
    (case,) = result["cases"].values()
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
    drawing = (tmp_path / "result.svg").read_text()
    assert drawing.startswith("<?xml")
    dark = (tmp_path / "result_dark.svg").read_text()
    used = [color for color in plots.DARK if color in drawing]
    assert len(used) >= 4
    assert [color for color in used if color in dark] == []


@pytest.mark.long
def test_compare_two_checkouts_are_interleaved_with_equal_bits(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mlxdist").symlink_to(ROOT / "mlxdist")
    arguments = ("--quick", "--only", "100x1000 float32, sharded", "--rounds", "2")
    result = bench(tmp_path, "compare", "--against", str(other), *arguments)
    (case,) = result["cases"].values()
    assert case["identical"]
    assert list(case["ratios"]) == ["after / before"]
    assert {name: len(s) for name, s in case["samples"].items()} == {
        "before": 4,
        "after": 4,
    }


def test_compare_without_a_package_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, common.BENCHMARKS / "compare.py", "--against", tmp_path],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert "found no mlxdist/__init__.py" in done.stderr


def test_memory_small_model_is_near_its_prediction(tmp_path):
    modes = ("--modes", "sharded minimize", "--dtypes", "float32")
    arguments = (*modes, "--ranks", "2", "--tensors", "1M", "--steps", "2")
    (measured,) = bench(tmp_path, "memory", *arguments)["measured"]
    parameters = step_cases.Case("1M", "float32", 1, 1).parameters
    assert measured["terms"]["parameters"] == 4 * parameters
    assert measured["state bytes a parameter"] == pytest.approx(4, 0.01)
    assert 0.5 < measured["peak / predicted"] < 2.5
    for rank in measured["every_rank"]:
        assert len(rank["samples"]) == 2
        assert all(rank["bare"] < sample["peak"] for sample in rank["samples"])
    assert (tmp_path / "result.png").stat().st_size > 1000


def test_minimize_small_case_is_compared_with_update(tmp_path):
    arguments = ("--quick", "--cases", "2 ranks", "--contenders", "sharded")
    result = bench(tmp_path, "minimize", *arguments)
    (case,) = result["cases"].values()
    for clock in ("wall", "processor"):
        assert set(case[clock]["samples"]) == {"sharded minimize", "sharded update"}
        for samples in case[clock]["samples"].values():
            assert len(samples) == 2
            assert all(0 < seconds < 10 for seconds in samples)
        assert list(case[clock]["ratios"]) == ["sharded minimize / sharded update"]


@pytest.mark.long
def test_fine_tuning_contenders_reach_the_same_loss(tmp_path):
    result = bench(tmp_path, "fine_tuning", "--quick", "--kinds", "full")
    case = result["cases"]["full"]
    upstream = case["loss"].pop("mlx-lm")
    for losses in case["loss"].values():
        assert losses == pytest.approx(upstream, 1e-3)
    assert all(figure > 0 for figure in case["resident"].values())


@pytest.mark.long
def test_train_contenders_reach_the_same_loss(tmp_path):
    arguments = ("--quick", "--turns", "1", "--places", "one machine")
    result = bench(tmp_path, "train", *arguments, "--contenders", "ours", "upstream")
    case = result["places"]["one machine"]
    assert case["losses"]["ours"] == pytest.approx(case["losses"]["upstream"], 1e-3)
    tokens = 2 * result["settings"]["rows"] * result["settings"]["context"]
    for name, seconds in case["samples"].items():
        assert case["tokens_per_second"][name] == pytest.approx(tokens / seconds[0])
        assert seconds[0] > 0.2 * case["compute_seconds"]


@pytest.mark.long
def test_scaling_state_is_divided_and_ranks_above_cores_are_apart(tmp_path):
    ranks = [1, 2, usable_cores() + 1]
    numbers = ("--ranks", *map(str, ranks[1:]))
    sizes = ("--width", "64", "--layers", "1", "--table", "256", "--context", "16")
    arguments = (*numbers, *sizes, "--steps", "1", "--rounds", "2")
    result = bench(tmp_path, "scaling", *arguments)
    assert result["settings"]["ranks"] == sorted(set(ranks))
    whole = max(result["state_bytes"]["1 rank"])
    assert whole == pytest.approx(2 * result["parameter_bytes"], 1e-3)
    for name, states in result["state_bytes"].items():
        number = int(name.split()[0])
        assert max(states) == pytest.approx(whole / number, 0.02)
        assert sum(states) == pytest.approx(whole, 1e-3)
        tokens = number * result["settings"]["rows"] * 16
        median = result["summary"][name]["median"]
        assert result["tokens_per_second"][name] == pytest.approx(tokens / median)
        assert len(result["samples"][name]) == 2
        assert all(len(each) == number for each in result["processor_samples"][name])
    drawing = (tmp_path / "result_dark.svg").read_text()
    assert "<!-- more ranks than cores: shows no speed -->" in drawing
    assert "<!-- ideal -->" in drawing


@pytest.mark.long
def test_step_after_sigterm_leaves_no_rank_behind(tmp_path):
    arguments = ("--quick", "--only", "1M float32", "--turns", "500")
    script = str(common.BENCHMARKS / "step.py")
    names = ("--contenders", "sharded", "upstream")
    with start([sys.executable, script, *arguments, *names], cwd=tmp_path) as running:
        ranks = wait_for(lambda: ranks_of(running.pid))
        time.sleep(1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 128 + signal.SIGTERM
    wait_for(lambda: not [pid for pid in ranks if is_alive(pid)])


def ranks_of(benchmark):
    """Return the pids of a benchmark's ranks once all of them have started."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True
    ).stdout.splitlines()
    parents = {int(line.split()[0]): int(line.split()[1]) for line in listing}
    mpiruns = [pid for pid, parent in parents.items() if parent == benchmark]
    ranks = [pid for pid, parent in parents.items() if parent in mpiruns]
    return ranks if len(ranks) >= 4 else None


def is_alive(pid):
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
