"""`mlxdist bench`: the list of benchmarks, and how one is started."""

import subprocess
import sys

import pytest

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
