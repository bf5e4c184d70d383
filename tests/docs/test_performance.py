"""docs/performance.md: its figures are those of benchmarks/results."""

import json
import re

import pytest

from tests.support.jobs import ROOT

PAGE = (ROOT / "docs" / "performance.md").read_text()
MODES = (
    "replicated update",
    "sharded update",
    "sharded minimize",
    "minimize, 8-bit state",
)


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def cells(start):
    """Return the cells of the row of a table that begins with a text."""
    (row,) = re.findall(rf"^\| {re.escape(start)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize(
    ("row", "case"),
    [
        ("50M float32", "50M float32"),
        ("10M float32", "10M float32"),
        ("1M float32", "1M float32"),
        ("10M bfloat16", "10M bfloat16"),
        ("2000 tensors of 1000, float32", "2000x1000 float32"),
        ("450 tensors of 4000, float32", "450x4000 float32"),
    ],
)
def test_times_against_mlx_are_those_measured(row, case):
    ratios = results("step")["cases"][case]["ratios"]
    names = ("sharded / upstream", "replicated native / upstream")
    measured = [f"{ratios[name]['ratio']:.2f}" for name in names]
    assert cells(row)[0] == "; ".join(measured)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_memory_ratios_are_those_measured(ranks):
    measured = {
        case["mode"]: f"{case['peak / predicted']:.2f}"
        for case in results("memory")["measured"]
        if (case["ranks"], case["dtype"]) == (ranks, "float32")
    }
    assert cells(str(ranks)) == [measured[mode] for mode in MODES]


def test_cost_of_the_checks_is_that_measured():
    text = f"add {results('guard_cost')['added_share']:.2%} to a step"
    assert text in " ".join(PAGE.split())
    failures = (ROOT / "docs" / "failures.md").read_text()
    assert text in " ".join(failures.split())


def test_other_figures_are_in_the_results():
    text = PAGE[PAGE.index("## Several hosts") :]
    figures = re.findall(r"(?<![\d.])\d+\.\d+", re.sub(r"`[^`\n]+`", "", text))
    results_page = (ROOT / "benchmarks" / "results" / "README.md").read_text()
    assert len(figures) > 20
    assert [figure for figure in figures if figure not in results_page] == []
