"""launch/test: its options and counts, and the import contracts that it checks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import suite
from tests.support.cases import part_of
from tests.support.jobs import ROOT, clean_environment

REPORT = '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1"/>{}'
PASSED = '<testsuites><testsuite tests="5" failures="0" errors="0" skipped="1"/>{}'


@pytest.mark.parametrize(
    ("report", "code", "passed", "failed"),
    [
        (PASSED.format("</testsuites>"), 0, 4, 0),
        (PASSED.format("</testsuites>"), 3, 4, 1),  # broke off after its tests
        (REPORT.format("</testsuites>"), 1, 2, 2),
        (REPORT.format(""), 1, 0, 1),  # half a report
        ("", 0, 0, 1),
        (None, 0, 0, 1),
        (None, 139, 0, 1),
        (None, -9, 0, 1),
    ],
)
def test_stage_of_counts_reports_and_missing_reports(
    report, code, passed, failed, tmp_path
):
    path = tmp_path / "report.xml"
    if report is not None:
        path.write_text(report)
    stage = suite.stage_of("serial tests", path, code, 1.0)
    assert (stage.passed, stage.failed) == (passed, failed)
    assert ("exit code" in stage.detail) == (code > 1)
    assert ("ended by SIGKILL" in stage.detail) == (code == -9)
    assert ("FAILED" in str(stage)) == bool(failed)


def test_suite_goes_on_after_a_failure_and_counts_checks(tmp_path, capfd):
    stages = suite.Suite([], tmp_path)
    stages.check("fails", sys.executable, "-c", "raise SystemExit(3)")
    stages.check("passes", sys.executable, "-c", "print('checked')")
    assert [(stage.name, stage.failed) for stage in stages.stages] == [
        ("fails", 1),
        ("passes", 0),
    ]
    assert "exit code 3" in stages.stages[0].detail
    assert "checked" in capfd.readouterr().out


@pytest.mark.parametrize(("word", "failed"), [("no_such_test", 0), ("two", 1)])
def test_suite_pytest_without_matching_tests_is_no_failure(word, failed, tmp_path):
    (tmp_path / "test_x.py").write_text(
        "def test_one(): pass\ndef test_two(): raise ValueError\n"
    )
    path = str(tmp_path / "test_x.py")
    stages = suite.Suite(["-k", word, "-p", "no:cacheprovider"], tmp_path)
    stages.pytest("tests", path, f"--rootdir={tmp_path}", "-c", "/dev/null")
    assert stages.stages[0].failed == failed


def test_suite_names_the_test_in_which_pytest_ended_and_runs_the_others(tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_x.py").write_text(
        "def test_passes(): pass\n"
        "import pytest\n"
        "@pytest.mark.timeout(0.5)\n"
        "def test_hangs():\n"
        "    while True: pass\n"
        "def test_fails(): raise ValueError\n"
    )
    arguments = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    stages = suite.Suite([*arguments, f"--rootdir={tmp_path}"], tmp_path)
    stages.pytest("tests", str(tmp_path))
    first, again = stages.stages
    assert (first.failed, again.passed, again.failed) == (1, 1, 1)
    assert first.detail == "ended without a report, in test_x.py::test_hangs"
    assert again.name == "tests again"
    lines = suite.repeated(stages.stages)
    assert "== tests: rank 0: test_x.py::test_hangs did not end within 0.5 s" in lines
    assert f"  {tmp_path}/test_x.py:5 test_hangs" in lines
    assert "== tests again: test_x::test_fails" in lines
    assert f"{tmp_path}/test_x.py:6: ValueError" in lines


def test_suite_repeats_only_the_beginning_of_many_failures():
    stage = suite.Stage("tests", 0, 200, 1.0, "", ["a failure"] * 200)
    lines = suite.repeated([stage, stage])
    assert lines[:2] == ["", "== tests: a failure"]
    assert len(lines) == suite.MAX_FAILURES + 1
    assert lines[-1] == f"... and {800 - suite.MAX_FAILURES} lines"


def test_parts_have_every_case_once():
    tests = [
        f"x.py::test_many[{shard}-{transport}]"
        for shard in ("False", "elements", "tensors")
        for transport in ("host", "native")
    ]
    tests += [f"x.py::test_{name}" for name in ("one", "two", "three", "four")]
    parts = [part_of(tests, part, 2) for part in (0, 1)]
    assert parts[0] & parts[1] == set()
    assert parts[0] | parts[1] == {*tests}
    for part in parts:
        cases = {test for test in part if "[" in test}
        assert len(cases) == 3
        assert part - cases  # a test of one case
    for word in ("host", "native"):
        assert all(any(word in test for test in part) for part in parts)


def test_options_pass_arguments_to_pytest():
    options = suite.parse_arguments(["--fast", "--", "-k", "sampler", "--", "-x"])
    assert (options.fast, options.long) == (True, False)
    assert options.pytest_arguments == ["-k", "sampler", "--", "-x"]


@pytest.mark.parametrize("arguments", [["--slow"], ["-k", "x"], ["word"]])
def test_options_unknown_end_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        suite.parse_arguments(arguments)
    assert caught.value.code == 2
    assert "usage: launch/test" in capsys.readouterr().err


# Imports that no package may have, as the report names them below their contract.
FORBIDDEN = [
    ("comm/agreement.py", "from ..world import world", "one direction"),
    ("planner/time_model.py", "from ..doctor import remedies", "one direction"),
    ("launcher/hosts.py", "from ..layout import entries", "no other package"),
    ("launcher/hosts.py", "import mlx.core", "no other package"),
    ("arrays/types.py", "from ..launcher import hosts", "not import the launcher"),
    ("layout/entries.py", "import numpy", "without arrays"),
    ("layout/entries.py", "from . import sharding", "No import cycles"),
]


def test_import_contracts_report_each_forbidden_import(tmp_path):
    """That they are kept without them is a check of launch/test."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mlxdist", tmp_path / "mlxdist", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line, _ in FORBIDDEN:
        with (tmp_path / "mlxdist" / module).open("a") as file:
            file.write(f"\n{line}\n")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    sections = re.split(r"^(.+)\n-{9,}\n", done.stdout, flags=re.MULTILINE)
    reports = dict(zip(sections[1::2], sections[2::2], strict=True))
    for module, line, contract in FORBIDDEN:
        importer, imported = module.split("/")[1][:-3], line.split()[-1]
        imported = imported.removesuffix(".core")
        (report,) = (text for title, text in reports.items() if contract in title)
        assert re.search(rf"\.{importer} -> .*\b{imported}\b", report), report
