"""launch/test: its options and counts, and the import contracts that it checks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import suite
from tests.support.cases import all_marked, cases_on
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


def test_cases_of_many_are_dealt_to_2_3_and_4_ranks():
    tests = [
        f"x.py::test_many[{shard}-{transport}]"
        for shard in ("False", "elements", "tensors")
        for transport in ("host", "native")
    ]
    two, three, four = (cases_on(ranks, tests) for ranks in (2, 3, 4))
    assert [*map(len, (two, three, four))] == [2, 2, 2]
    assert two | three | four == {*tests}


def test_cases_of_few_run_on_2_ranks_and_on_3_or_4():
    tests = [f"x.py::test_few[{shard}]" for shard in ("False", "elements", "tensors")]
    tests += [f"x.py::test_{name}" for name in ("one", "two", "three", "four")]
    two, three, four = (cases_on(ranks, tests) for ranks in (2, 3, 4))
    assert two == {*tests} == three | four
    assert three & four == set()
    for part in (three, four):
        cases = {test for test in part if "[" in test}
        assert cases
        assert part - cases  # a test of one case


@pytest.mark.parametrize(
    ("source", "is_marked"),
    [
        ("pytestmark = pytest.mark.mpi", True),
        ("pytestmark = [pytest.mark.long, pytest.mark.mpi(min_size=2)]", True),
        ("pytestmark = pytest.mark.long", False),
        ('SOURCE = """\npytestmark = pytest.mark.mpi\n"""', False),
        ("@pytest.mark.mpi\ndef test_x(): pass", False),
    ],
)
def test_file_is_left_out_if_all_of_its_tests_are_marked(source, is_marked):
    assert all_marked(source, "mpi") == is_marked


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
