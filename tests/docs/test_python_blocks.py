"""The Python blocks of the pages, each page in one namespace, on all ranks."""

import ast
import re
import runpy

import mlx.core as mx
import pytest

from tests.support.jobs import ROOT
from tests.support.pages import pages

PRELUDES = ROOT / "tests" / "docs" / "preludes"
WITH_PYTHON = [page for page in pages() if page.blocks("python")]


def run_block(block, names):
    """Execute a block; errors have the page's line numbers."""
    code = "\n" * (block.line - 1) + block.code
    exec(compile(code, ROOT / block.page.path, "exec"), names)


@pytest.mark.mpi
@pytest.mark.parametrize("page", WITH_PYTHON, ids=str)
def test_page_python_blocks_run(page, shared_folder, monkeypatch, capsys):
    """Losses are finite too, with the data of the preludes."""
    monkeypatch.chdir(shared_folder)
    mx.random.seed(0)
    names = {"__name__": "page"}
    if page.prelude:
        names |= runpy.run_path(str(PRELUDES / f"{page.prelude}.py"))
    for block in page.blocks("python"):
        if block.error is None:
            run_block(block, names)
            continue
        with pytest.raises(Exception, match=block.message) as caught:
            run_block(block, names)
        assert block.error in [kind.__name__ for kind in type(caught.value).__mro__]
    assert not re.search(r"\b(nan|inf)\b", capsys.readouterr().out)


@pytest.mark.parametrize("page", pages(), ids=str)
def test_page_other_python_is_valid(page):
    for block in page.blocks("py"):
        ast.parse(block.code, str(block))


def test_preludes_are_used():
    used = {page.prelude for page in pages()} - {None}
    assert used == {path.stem for path in PRELUDES.glob("*.py")}
