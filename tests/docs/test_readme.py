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


def cases(file):
    """Return the cases of a file of bench step."""
    return json.loads((RESULTS / file).read_text())["cases"]


def milliseconds(file):
    """Return the median times of a step with 50M float32 parameters."""
    summary = cases(file)["50M float32"]["summary"]
    return {name: f"{each['median'] * 1e3:.0f}" for name, each in summary.items()}


def test_readme_has_the_memory_that_was_measured():
    mb = peaks()
    least, usual = mb["sharded minimize"], mb["upstream"]
    assert f"**{least} MB a rank instead of {usual} MB**" in README
    eight_bits = mb["minimize, 8-bit state"]
    row = f"{mb['sharded update']} MB; with `minimize` {least}, and 8-bit state"
    assert f"| {usual} MB | {row} {eight_bits} |" in README


def test_readme_has_the_times_that_were_measured():
    ms = milliseconds("step.json")
    usual = f"{ms['upstream']} ms; {ms['upstream tuned']} if it keeps freed memory"
    assert f"| {usual} | {ms['sharded']} ms |" in README
    ratio = cases("step.json")["1M float32"]["ratios"]["sharded / upstream"]["ratio"]
    assert f"| {ratio:.2f} times as long |" in README
    ms = milliseconds("step_torch.json")
    torch = f"takes {ms['torch']} and {ms['torch zero']} ms"
    assert f"{torch} where mlxdist takes {ms['sharded']}" in README


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("words", ["Never run on a Mac", "pip install .", "```python"])
def test_readme_has_what_matters_on_its_first_screen(words):
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(words in line for line in lines[:50])
