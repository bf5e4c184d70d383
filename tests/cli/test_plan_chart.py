"""cli/plan_chart, cli/figures: the chart of `mlxdist plan --chart FILE`."""

import re
import sys
from xml.etree import ElementTree

import pytest

from mlxdist import cli
from mlxdist.cli import figures, plan_chart
from mlxdist.layout.memory import MemoryOptions
from mlxdist.planner import list_choices, model_of_size

COMMAND = "plan --parameters 1B --dtype bfloat16 --master-dtype float32 -n 1 -n 3"


@pytest.fixture(scope="module")
def chart(tmp_path_factory):
    """The text of an SVG with all panels, and that for dark pages."""
    path = tmp_path_factory.mktemp("chart") / "plan.svg"
    words = f"{COMMAND} --memory 9GB --step-time 2 --link 10gbe --link 2.5gbit"
    assert cli.main([*words.split(), "--chart", str(path)]) == 0
    dark = path.with_name("plan_dark.svg")
    assert sorted(path.parent.iterdir()) == [path, dark]
    return path.read_text(), dark.read_text()


def labels_of(drawing):
    """Return the texts of an SVG, which matplotlib writes as comments."""
    return [text.strip() for text in re.findall(r"<!-- (.*?) -->", drawing)]


def test_chart_is_valid_svg_with_its_labels(chart):
    drawing, dark = chart
    labels = labels_of(drawing)
    assert labels_of(dark) == labels
    for text in chart:
        assert ElementTree.fromstring(text).tag.endswith("svg")
    wanted = """parameters gradients state masters buckets process computing transfer
        latency copying"""
    assert set(wanted.split()) < set(labels)
    assert {"mean gradients", "9 GB a rank", "ideal: as on one host"} < set(labels)
    assert "1,000,000,000 parameters in bfloat16, 2 GB, AdamW: predicted" in labels
    assert [text for text in labels if text.startswith("Step time")] == [
        "Step time over 10gbe",
        "Step time over 2.5gbit",
    ]
    assert labels.count("3 hosts") == 2
    assert labels.count("speed 1") == 2
    assert "EMA weights" not in labels


def test_chart_marks_the_recommended_choice_and_writes_each_sum(chart):
    labels = labels_of(chart[0])
    model = model_of_size(10**9, "bfloat16", "adamw", bucket_size=4 << 20)
    options = MemoryOptions(master_dtype="float32", float32_state=("embed",))
    choices = list_choices(model, 3, options)
    sums = [f"{choice.memory.total / 1e9:.3g} GB" for choice in choices]
    assert set(sums) <= set(labels)
    fitting = next(choice for choice in choices if choice.memory.total <= 9e9)
    assert [text for text in labels if text.startswith("* ")] == [
        f"* {', '.join(fitting.changes)}"
    ]


def test_chart_for_dark_pages_has_other_colors(chart):
    light, dark = chart
    used = {*re.findall(r"(?:fill|stroke): (#\w+)", light)}
    assert len(used) >= 8
    assert used <= figures.DARK.keys()
    assert [color for color in used if color in dark] == []
    assert all(figures.DARK[color] in dark for color in used)


def test_parts_of_a_bar_are_all_terms():
    """With each option that adds a term."""
    model = model_of_size(10**6, "bfloat16", "adamw", bucket_size=4 << 20, frozen=10**6)
    for options in (
        MemoryOptions(master_dtype="float32", ema=True, accumulate=2),
        MemoryOptions(accumulate=2, accumulate_sharded=True),
    ):
        for choice in list_choices(model, 2, options):
            parts = plan_chart.memory_parts([choice])
            assert sum(sum(sizes) for sizes in parts.values()) == pytest.approx(
                choice.memory.total / 1e9
            )


def test_chart_as_png_without_step_time_is_one_file(tmp_path, capsys):
    path = tmp_path / "plan.png"
    path.write_text("of an earlier run")
    assert cli.main([*COMMAND.split(), "--json", "--chart", str(path)]) == 0
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith("[")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plan.pdf", "wanted a name that ends with .png or .svg"),
        ("file/plan.svg", "Not a directory; wanted a file in a folder"),
    ],
)
def test_chart_that_cannot_be_written_is_refused(name, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    try:
        code = cli.main([*COMMAND.split(), "--chart", str(tmp_path / name)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_chart_without_matplotlib_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "plan.svg"
    assert cli.main([*COMMAND.split(), "--chart", str(path)]) == 2
    output = capsys.readouterr()
    assert "pip install 'mlxdist[plot]'" in output.err
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []
