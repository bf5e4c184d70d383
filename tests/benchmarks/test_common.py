"""What all benchmarks share: order of samples, summaries, ratios, the JSON result."""

import json
import sys

import common
import numpy as np
import pytest

import mlxdist
from tests.support.jobs import ROOT


def test_round_order_puts_every_contender_first_and_last_equally_often():
    for count in (1, 2, 3, 5):
        names = "abcde"[:count]
        rounds = [common.round_order(names, number) for number in range(2 * count)]
        assert all(sorted(order) == sorted(names) for order in rounds)
        for name in names:
            assert sum(order[0] == name for order in rounds) == 2
            assert sum(order[-1] == name for order in rounds) == 2


def test_summaries_and_ratios_are_those_of_numpy():
    samples = [5.0, 1.0, 2.0, 4.0, 3.0]
    assert common.summarize(samples) == (3.0, (2.0, 4.0), (1.0, 5.0), 5)
    doubled = [2 * value for value in samples]
    ratio = common.ratio_of(doubled, samples)
    # Rounds are resampled in pairs: the ratio is 2 in each, and so in any selection.
    assert ratio == (2.0, (2.0, 2.0))
    noise = np.random.default_rng(0).normal(1, 0.1, (2, 200))
    ratio, (low, high) = common.ratio_of(*noise)
    assert 0.9 < low < ratio < high < 1.1
    assert low < 1 < high


def test_interleave_alternates_and_drops_warmup_rounds():
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


def test_write_json_has_command_and_environment_without_absolute_paths(
    monkeypatch, tmp_path
):
    script, inside = tmp_path / "step.py", ROOT / "benchmarks" / "results" / "x.json"
    arguments = [f"--json={inside}", str(tmp_path / "y z"), "-1", "--only", "a b"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    result = common.record({"a": [1.0, 3.0], "b": [2.0]}, [("a", "b"), ("a", "c")])
    target = tmp_path / "new" / "x.json"
    common.write_json(target, "Why?", result, ranks=3)
    written = json.loads(target.read_text())
    assert written["command"] == (
        "mlxdist bench -n 3 step --json=benchmarks/results/x.json 'y z' -1 --only 'a b'"
    )
    assert str(tmp_path) not in target.read_text()
    assert written["samples"] == {"a": [1.0, 3.0], "b": [2.0]}
    assert written["ratios"]["a / b"]["ratio"] == 1.0
    assert list(written["ratios"]) == ["a / b"]
    assert written["summary"]["a"]["median"] == 2.0
    assert written["environment"]["versions"]["mlx"]
    assert [path.name for path in target.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (common.Ratio(0.94, (0.9, 0.97)), "0.94 of the time of b (0.90 to 0.97): fast"),
        (common.Ratio(1.2, (1.1, 1.3)), "1.20 of the time of b (1.10 to 1.30): slower"),
        (common.Ratio(0.97, (0.9, 1.1)), "(0.90 to 1.10): no clear difference"),
    ],
)
def test_verdict_of_a_ratio_says_which_is_faster_or_that_it_is_open(ratio, word):
    assert word in common.verdict_of("a / b", ratio._asdict())


def test_bound_text_says_whether_the_bound_is_kept():
    assert "0.2 s, within the bound of 0.3 s" in common.bound_text("a", 0.2, 0.3, "s")
    assert "0.4 s, ABOVE the bound of 0.3 s" in common.bound_text("a", 0.4, 0.3, "s")


def test_table_has_a_legend_below_it(capsys):
    console = common.make_console()
    common.print_table(console, "t", ["a", "b"], [("x", "1")], "lower is better")
    common.print_verdicts(console, {"x / y": common.Ratio(1, (0.5, 2))._asdict()})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2] == "lower is better"
    assert lines[-1].startswith("-> x takes 1.00 of the time of y")
