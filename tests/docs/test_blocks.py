"""The blocks of the pages: languages, and data that parses."""

import json

import pytest
import yaml

from tests.support.pages import Page, pages, without_comment

LANGUAGES = {"python", "py", "bash", "text", "json", "yaml"}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_page_blocks_have_a_language_that_is_tested(page):
    others = [str(b) for b in page.blocks() if b.language not in LANGUAGES]
    assert others == []
    assert len(page.blocks()) * 2 == page.text.count("```")


@pytest.mark.parametrize("page", pages(), ids=str)
def test_page_data_is_valid(page):
    for block in page.blocks("json"):
        json.loads(block.code)
    for block in page.blocks("yaml"):
        list(yaml.safe_load_all(block.code))


def test_pages_have_blocks_of_each_kind():
    assert len(pages()) > 10
    readme = Page("README.md")
    assert readme.blocks("python")
    assert readme.commands()


def test_command_without_a_comment_keeps_quotes():
    assert without_comment("run 'a # b'  # why") == "run 'a # b'"
    assert without_comment("# why") == ""
