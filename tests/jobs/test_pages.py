"""README.md, CONTRIBUTING.md, docs: paths and names exist, commands parse."""

import pkgutil
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import mlxdist
from mlxdist import cli
from tests.support import suite
from tests.support.jobs import ROOT

PACKAGE = Path(mlxdist.__file__).parent
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROMISES = (ROOT / "docs" / "promises.md").read_text()
LAYOUT = README[README.index("## Code layout") :]
LINK = re.compile(r"(?:\]\(|src=\")(?!https?:)([^)\"]+)")
FIGURE = ROOT / "docs" / "step.svg"


def quoted(text):
    """Return what is in single backticks, outside of blocks of code."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def paths():
    """Return the paths in the text: words with a slash, or names of files."""
    pattern = re.compile(r"[\w.-]+(/[\w.-]*)+|\w+\.(md|py|toml)")
    text = LAYOUT + CONTRIBUTING + PROMISES
    words = {word for word in quoted(text) if pattern.fullmatch(word)}
    links = {link.partition("#")[0] for link in LINK.findall(README + CONTRIBUTING)}
    return sorted(words - {"__init__.py"} | links)


def dotted_names():
    """Return names such as optim.step.DistributedStep, of any package here."""
    roots = "|".join([*PACKAGES, "tests", "common"])
    pattern = re.compile(rf"({roots})(\.\w+)+")
    return sorted(word for word in set(quoted(CONTRIBUTING)) if pattern.fullmatch(word))


def resolve(name):
    """Return the object of a dotted name; AttributeError where there is none."""
    inside = name.split(".")[0] in PACKAGES
    return pkgutil.resolve_name(f"mlxdist.{name}" if inside else name)


def commands(program):
    """Return the arguments of each command line that begins with a program."""
    text = README + CONTRIBUTING
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if not language]
    lines = "\n".join([*blocks, *quoted(text)])
    found = re.findall(rf"^(?:\S*/)?{program}(?: (.*))?$", lines, re.MULTILINE)
    return sorted({line.partition(" #")[0].strip() for line in found})


@pytest.mark.parametrize("path", paths())
def test_pages_path_exists(path):
    assert (ROOT / path).exists()


def test_pages_list_every_package():
    assert sorted(set(re.findall(r"`mlxdist/(\w+)/`", LAYOUT))) == PACKAGES


@pytest.mark.parametrize("name", dotted_names())
def test_pages_name_exists(name):
    resolve(name)


def test_pages_mention_names_and_paths():
    assert len(dotted_names()) > 40
    assert len(paths()) > 30


def test_resolve_of_an_unknown_name_fails():
    with pytest.raises(AttributeError, match="unknown"):
        resolve("optim.inner_optimizer.Leaf.unknown")


def mlxdist_commands():
    """Return complete command lines, not names and `show|verify|consolidate`."""
    lines = commands("mlxdist")
    return [line for line in lines if " " in line and "|" not in line]


@pytest.mark.parametrize("line", mlxdist_commands())
def test_pages_mlxdist_command_is_accepted_by_the_parser(line):
    parsed = cli.make_parser().parse_args(shlex.split(line))
    assert parsed.command == line.split()[0]


def test_pages_mlxdist_commands_exist():
    names = {line.split()[0] for line in commands("mlxdist") if line}
    usage = cli.make_parser().format_help()
    assert names == set(re.findall(r"^    (\w+)", usage, re.MULTILINE))


@pytest.mark.parametrize("line", commands("launch/test"))
def test_pages_suite_command_is_accepted_by_the_parser(line):
    suite.parse_arguments(shlex.split(line))


@pytest.mark.parametrize("line", commands("launch/setup"))
def test_pages_setup_extras_are_in_pyproject(line):
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in pyproject for extra in line.split())


@pytest.mark.parametrize("program", ["ruff", "mypy", "lint-imports"])
def test_pages_program_is_installed(program):
    assert f".venv/bin/{program}" in CONTRIBUTING
    assert (Path(sys.executable).parent / program).exists()


@pytest.mark.parametrize("line", commands("[^#\n]* -m pytest"))
def test_pages_pytest_command_selects_tests(line):
    command = [sys.executable, "-m", "pytest", *shlex.split(line)]
    done = subprocess.run(
        [*command, "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_figure_files_exist():
    """The files are relative to the package, in the texts of class file."""
    texts = ElementTree.parse(FIGURE).getroot().iter("{http://www.w3.org/2000/svg}text")
    files = [f for t in texts if t.get("class") == "file" for f in t.text.split()]
    assert len(files) > 10
    assert [file for file in files if not (PACKAGE / file).exists()] == []
