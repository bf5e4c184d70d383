"""The page of several runs."""

import json

import pytest

from mlxdist import cli
from mlxdist.report import comparison_of, read_run
from tests.support.html import HOSTILE, Page


def make_run(folder, config, **metrics):
    """Make the folder of a run with three lines of these metrics."""
    folder.mkdir()
    lines = [json.dumps({"step": step, **metrics}) for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "run.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folders(tmp_path):
    shared = {"ranks": 2, "config": {"rate": 0.1, "name": HOSTILE}}
    first = make_run(tmp_path / "a", {**shared, "id": "1"}, train_loss=2.5)
    other = {**shared, "id": "2", "ranks": 4, "new": HOSTILE}
    second = make_run(tmp_path / "b", other, train_loss=1.5, peak_memory=3.0)
    return first, second


def test_comparison_has_the_lines_of_each_run_and_what_differs(folders):
    runs = {name: read_run(f) for name, f in zip(("a", HOSTILE), folders, strict=True)}
    page = Page(comparison_of(runs))
    assert {"script", "img"} & set(page.tags) == set()
    classes = [value for name, value in page.attributes if name == "class"]
    assert (classes.count("s0"), classes.count("s1")) == (2, 2)  # loss and memory
    differences = page.words[page.words.index("What differs") :]
    assert differences[3:8] == ["ranks", "2", "4", "new", HOSTILE]
    assert "config.rate" not in page.text


def test_command_compares_runs_and_prints_their_last_values(
    folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["report", "a", "b"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[:4]] == [
        ["a", "b"],
        ["steps", "3", "3"],
        ["training", "loss", "2.5", "1.5"],
        ["peak", "memory", "3", "GB"],
    ]
    assert printed[-1] == "page: comparison.html"
    assert (tmp_path / "comparison.html").stat().st_mode & 0o777 == 0o600


def test_comparison_names_a_run_only_where_it_has_something(folders):
    (folders[1] / "run.json").unlink()
    (folders[1] / "failure.json").write_text('{"exit_code": 1}')
    runs = {name: read_run(f) for name, f in zip("ab", folders, strict=True)}
    page = Page(comparison_of(runs))
    first = page.words.index("steps")
    assert page.words[first - 3 : first] == ["b", "end of the job", "exit code 1"]
    legends = [
        value for name, value in page.attributes if value in ("key k0", "key k1")
    ]
    assert legends == ["key k0", "key k1", "key k1"]  # a has a loss, and no memory
    differences = page.words[page.words.index("What differs") :]
    assert differences[3:5] == ["ranks", "2"]
    assert "{}" not in differences


def test_command_prints_long_names_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"{'x' * 40}{end}" for end in "ab"]
    for name in names:
        make_run(tmp_path / name, {}, train_loss=1.0)
    assert cli.main(["report", *names]) == 0
    printed = capsys.readouterr().out
    assert ("a" in printed.split("steps")[0], "…" in printed) == (True, False)


@pytest.mark.parametrize("names", [["a", "b/../a"], ["a", "b", "c", "d", "e"]])
def test_command_refuses_equal_folders_and_too_many(names, tmp_path, capsys):
    assert cli.main(["report", *(str(tmp_path / name) for name in names)]) == 2
    assert "wanted up to 4 different ones" in capsys.readouterr().err
