"""`mlxdist bench`, and what the benchmarks share."""

import json
import subprocess
import sys

import common
import numpy as np
import pytest

import mlxdist
from mlxdist.cli import bench_runner as bench
from tests.support.jobs import ROOT, clean_environment


def mlxdist_bench(*arguments, cwd=ROOT, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "mlxdist.cli", "bench", *arguments],
        env=clean_environment({"COLUMNS": "200"}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_it_lists_every_script_with_its_question():
    listed = mlxdist_bench()
    assert listed.returncode == 0, listed.stderr
    for script in (ROOT / "benchmarks").glob("*.py"):
        (line,) = (x for x in listed.stdout.splitlines() if x.split()[0] == script.stem)
        assert line.rstrip().endswith("?"), f"{script.stem} asks nothing"


def test_an_unknown_name_lists_those_that_there_are():
    failed = mlxdist_bench("nonsense")
    assert failed.returncode == 2
    assert "guard_cost" in failed.stderr


def test_without_a_checkout_it_says_where_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "mlxdist" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="git checkout"):
        bench.find_folder()
    monkeypatch.chdir(ROOT)
    assert bench.find_folder() == ROOT / "benchmarks"


def test_ranks_are_refused_where_the_script_starts_its_own_jobs(monkeypatch, tmp_path):
    (tmp_path / "solo.py").write_text('"""Does it?"""\n')
    (tmp_path / "all.py").write_text('"""Do they?\n\nMore."""\nRANKS = 3\n')
    assert [tuple(x)[0::2] for x in bench.list_benchmarks(tmp_path)] == [
        ("all", "Do they?"),
        ("solo", "Does it?"),
    ]
    monkeypatch.setattr(bench, "find_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="starts its own jobs"):
        bench.run("solo", [], ranks=2)


def test_every_contender_goes_first_and_last_equally_often():
    for count in (1, 2, 3, 5):
        names = "abcde"[:count]
        rounds = [common.order_of(names, number) for number in range(2 * count)]
        assert all(sorted(order) == sorted(names) for order in rounds)
        for name in names:
            assert sum(order[0] == name for order in rounds) == 2
            assert sum(order[-1] == name for order in rounds) == 2


def test_summaries_and_ratios_are_those_of_numpy():
    samples = [5.0, 1.0, 2.0, 4.0, 3.0]
    assert common.summarize(samples) == (3.0, (2.0, 4.0), (1.0, 5.0), 5)
    twice = [2 * value for value in samples]
    ratio = common.ratio_of(twice, samples)
    # Rounds are drawn together: what is twice as slow in each is so in any of them.
    assert ratio == (2.0, (2.0, 2.0))
    noise = np.random.default_rng(0).normal(1, 0.1, (2, 200))
    ratio, (low, high) = common.ratio_of(*noise)
    assert 0.9 < low < ratio < high < 1.1
    assert low < 1 < high


def test_interleaved_rounds_alternate_and_warm_ones_do_not_count():
    world = mlxdist.init()
    calls = []
    samples = common.interleave(
        world,
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=4,
        warmup=2,
        before=lambda: calls.append("-"),
    )
    assert "".join(calls) == "-b-a-a-b" + "-a-b-b-a-b-a-a-b"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4}


def test_a_record_is_whole_json_without_a_place(monkeypatch, tmp_path):
    script, inside = tmp_path / "step.py", ROOT / "benchmarks" / "results" / "x.json"
    arguments = [f"--json={inside}", str(tmp_path / "y z"), "-1", "--only", "a b"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    result = common.record({"a": [1.0, 3.0], "b": [2.0]}, [("a", "b"), ("a", "c")])
    target = tmp_path / "new" / "x.json"
    common.write_json(target, "Why?", result, ranks=3)
    read = json.loads(target.read_text())
    assert read["command"] == (
        "mlxdist bench -n 3 step --json=benchmarks/results/x.json 'y z' -1 --only 'a b'"
    )
    assert str(tmp_path) not in target.read_text()
    assert read["samples"] == {"a": [1.0, 3.0], "b": [2.0]}
    assert read["ratios"]["a / b"]["ratio"] == 1.0
    assert list(read["ratios"]) == ["a / b"]
    assert read["summary"]["a"]["median"] == 2.0
    assert read["environment"]["versions"]["mlx"]
    assert [path.name for path in target.parent.iterdir()] == ["x.json"]
