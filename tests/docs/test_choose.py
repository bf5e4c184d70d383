"""docs/choose.md: its predictions are those of `mlxdist plan`."""

import contextlib
import io
import json
import re

import pytest

from mlxdist import cli
from tests.support.jobs import ROOT

PAGE = (ROOT / "docs" / "choose.md").read_text()
COMMAND = "plan --parameters 8B --dtype bfloat16 --master-dtype float32 -n 2"
# The rows of the table, each with the changes of those above it.
CHANGES = {
    "shard=True": "shard",
    "minimize": "minimize",
    'master_dtype="24bit"': "24bit",
    'state_dtype="int8"': "int8",
    "mean_dtype=mx.bfloat16": "means",
    "check_finite=False": "unchecked",
}
ROW = re.compile(r"^\| `([^`]+)`.*\| 2 \+ (.+?) \| ([\d.]+) GB \|", re.MULTILINE)
ROWS = ROW.findall(PAGE)


@pytest.fixture(scope="module")
def totals():
    """The GB of each choice, by its changes."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert cli.main([*COMMAND.split(), "--json"]) == 0
    (hosts,) = json.loads(output.getvalue())
    choices = hosts["choices"]
    return {frozenset(each["changes"]): each["total"] / 1e9 for each in choices}


def test_rows_of_the_page_are_the_changes_of_plan():
    assert [row[0] for row in ROWS] == list(CHANGES)
    assert f"`mlxdist {COMMAND}`" in PAGE


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_prediction_of_a_row_is_that_of_plan(row, totals):
    """With check_finite=False no mean waits, so that its dtype does not matter."""
    changes = [CHANGES[option] for option, *_ in ROWS[: row + 1]]
    if changes[-1] == "unchecked":
        changes.remove("means")
    _, terms, gigabytes = ROWS[row]
    assert float(gigabytes) == pytest.approx(totals[frozenset(changes)], abs=0.6)
    bytes_each = 2 + eval(terms, {"N": 2})
    assert float(gigabytes) == pytest.approx(8 * bytes_each, abs=0.6)


def test_picture_of_the_page_is_what_its_command_draws(tmp_path):
    """In its texts: the rest depends on the version of matplotlib."""
    (command,) = re.findall(r"^mlxdist (plan .*) --chart plan.svg$", PAGE, re.MULTILINE)
    drawn = tmp_path / "plan.svg"
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([*command.split(), "--chart", str(drawn)]) == 0
    for path in (drawn, tmp_path / "plan_dark.svg"):
        texts, wanted = (
            re.findall("<!-- (.*?) -->", file.read_text())
            for file in (ROOT / "docs" / "figures" / path.name, path)
        )
        assert texts == wanted
        assert "64 GB a rank" in texts
