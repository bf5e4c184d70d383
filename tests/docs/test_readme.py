"""README.md: its figures are those of benchmarks/results."""

import json

import pytest

from tests.support.jobs import ROOT

README = " ".join((ROOT / "README.md").read_text().split())
RESULTS = ROOT / "benchmarks" / "results"


def peaks():
    """Return the megabytes of a rank on 2 ranks, by mode."""
    measured = json.loads((RESULTS / "memory.json").read_text())["measured"]
    return {
        case["mode"]: f"{case['peak'] / 1e6:.0f}"
        for case in measured
        if (case["ranks"], case["dtype"]) == (2, "float32")
    }


def step(case):
    """Return the summary and the ratios of a case of bench step."""
    cases = json.loads((RESULTS / "step.json").read_text())["cases"]
    return cases[case]["summary"], cases[case]["ratios"]


def test_readme_has_the_memory_that_was_measured():
    mb = peaks()
    least, usual = mb["sharded minimize"], mb["upstream"]
    assert f"**{least} MB a rank instead of {usual} MB**" in README
    eight_bits = mb["minimize, 8-bit state"]
    row = f"{mb['sharded update']} MB; with `minimize` {least}, and 8-bit state"
    assert f"| {usual} MB | {row} {eight_bits} |" in README


def test_readme_has_the_times_that_were_measured():
    ms = {
        name: f"{s['median'] * 1e3:.0f}" for name, s in step("50M float32")[0].items()
    }
    usual = f"{ms['upstream']} ms; {ms['upstream tuned']} if it keeps freed memory"
    assert f"| {usual} | {ms['sharded']} ms |" in README
    ratio = step("1M float32")[1]["sharded / upstream"]["ratio"]
    assert f"| {ratio:.2f} times as long |" in README


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("words", ["Never run on a Mac", "pip install .", "```python"])
def test_readme_has_what_matters_on_its_first_screen(words):
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(words in line for line in lines[:45])
