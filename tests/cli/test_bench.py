"""cli/bench and cli/bench_runner: the list of benchmarks, and how one is started."""

import pytest

from mlxdist import cli
from mlxdist.cli import bench_runner
from tests.support.jobs import ROOT


def test_bench_without_a_name_lists_every_script_with_its_question(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["bench"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    scripts = {script.stem for script in (ROOT / "benchmarks").glob("*.py")}
    assert set(lines) == scripts
    assert all(line.rstrip().endswith("?") for line in lines.values())


def test_bench_with_an_unknown_name_lists_the_known_ones(capsys):
    assert cli.main(["bench", "nonsense"]) == 2
    assert "guard_cost" in capsys.readouterr().err


def test_find_folder_without_benchmarks_names_the_checkout(tmp_path):
    with pytest.raises(ValueError, match="git checkout"):
        bench_runner.find_folder(tmp_path)
    assert bench_runner.find_folder() == ROOT / "benchmarks"


def test_run_with_ranks_of_a_script_that_starts_its_own_jobs_is_refused(tmp_path):
    (tmp_path / "solo.py").write_text('"""Does it?"""\n')
    (tmp_path / "all.py").write_text('"""Do they?\n\nMore."""\nRANKS = 3\n')
    benchmarks = bench_runner.list_benchmarks(tmp_path)
    assert [(each.name, each.question, each.ranks) for each in benchmarks] == [
        ("all", "Do they?", 3),
        ("solo", "Does it?", None),
    ]
    with pytest.raises(ValueError, match="starts its own jobs"):
        bench_runner.run("solo", [], ranks=2, folder=tmp_path)
