"""README.md, CONTRIBUTING.md, docs: paths and names exist."""

import pkgutil
import re
from pathlib import Path

import pytest

import mlxdist
from mlxdist import cli
from tests.support.jobs import ROOT
from tests.support.pages import pages

PACKAGE = Path(mlxdist.__file__).parent
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROMISES = (ROOT / "docs" / "promises.md").read_text()
ALL = "\n".join(page.text for page in pages())
DESIGN = (ROOT / "docs" / "design.md").read_text()
LAYOUT = DESIGN[DESIGN.index("## Code layout") :]


def quoted(text):
    """Return what is in single backticks, outside of blocks of code."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def paths():
    """Return the paths in the text: words with a slash, or names of files."""
    pattern = re.compile(r"[\w.-]+(/[\w.-]*)+|\w+\.(md|py|toml)")
    text = LAYOUT + CONTRIBUTING + PROMISES
    words = {word for word in quoted(text) if pattern.fullmatch(word)}
    return sorted(words - {"__init__.py"})


def dotted_names():
    """Return names such as optim.step.DistributedStep, of any package here."""
    roots = "|".join([*PACKAGES, "tests", "common"])
    pattern = re.compile(rf"({roots})(\.\w+)+")
    return sorted(word for word in set(quoted(CONTRIBUTING)) if pattern.fullmatch(word))


def resolve(name):
    """Return the object of a dotted name; AttributeError where there is none."""
    inside = name.split(".")[0] in PACKAGES
    return pkgutil.resolve_name(f"mlxdist.{name}" if inside else name)


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


def test_pages_have_every_command_of_mlxdist():
    found = re.findall(r"(?:^|`|/)mlxdist ([a-z]+)\b", ALL, re.MULTILINE)
    usage = cli.make_parser().format_help()
    assert set(found) >= set(re.findall(r"^    (\w+)", usage, re.MULTILINE))
