"""The drawn figures of the pages: their files, and what they name."""

import runpy
import xml.etree.ElementTree as ElementTree

import pytest

from tests.support.jobs import ROOT

DOCS = ROOT / "docs"
PACKAGE = ROOT / "mlxdist"
DRAWN = runpy.run_path(str(DOCS / "figures" / "draw.py"))["figures"]()


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_what_its_script_draws(name):
    assert (DOCS / "figures" / name).read_text() == DRAWN[name]


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_valid_and_has_colours_for_dark_pages(name):
    assert ElementTree.fromstring(DRAWN[name]).find("{*}title").text
    assert "prefers-color-scheme: dark" in DRAWN[name]


def test_step_figure_names_files_that_exist():
    """They are relative to the package, in the texts of class file."""
    texts = ElementTree.parse(DOCS / "step.svg").findall(".//{*}text")
    files = [f for t in texts if t.get("class") == "file" for f in t.text.split()]
    assert len(files) > 10
    assert [file for file in files if not (PACKAGE / file).exists()] == []
