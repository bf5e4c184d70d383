"""Links of the pages as they are in a checkout. The build checks those of the site."""

import re
import socket
import urllib.error
import urllib.request

import pytest

from tests.support.jobs import ROOT
from tests.support.pages import Page, pages

PAGES = [*pages(), Page("benchmarks/results/README.md"), Page("CHANGELOG.md")]
INTERNAL = re.compile(
    r"(?:\]\(|(?:src|srcset|href)=\")(?!https?:|mailto:)([^)\"#\s]*)(?:#([^)\"\s]+))?"
)
EXTERNAL = re.compile(r"https?://[^\s)\">`\]]+[\w/]")


def prose(page):
    """Return a page's text without blocks and code."""
    text = page.text
    for block in page.blocks():
        text = text.replace(block.code, "")
    return re.sub(r"`[^`\n]+`", "", text)


def anchors(path):
    """Return the anchors of a page's headings, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[|\]\(.*?\)", "", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in plain}


def broken(page):
    """Yield the links of a page that lead nowhere, with the reason."""
    for target, anchor in INTERNAL.findall(prose(page)):
        here = ROOT / page.path
        path = (here.parent / target).resolve() if target else here
        if not path.exists():
            yield target
        # Those of the API reference exist on the site alone, which checks them.
        elif anchor and "docs/api/" not in str(path) and anchor not in anchors(path):
            yield f"{target}#{anchor}"


def external():
    return sorted({url for page in PAGES for url in EXTERNAL.findall(prose(page))})


def has_network():
    try:
        socket.create_connection(("github.com", 443), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page_links_lead_to_files_and_headings(page):
    assert list(broken(page)) == []


def test_broken_links_are_seen(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("# A b\n[x](a.md#a-b) [y](c.md) [z](#c) `[w](d)`\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert list(broken(Page(str(tmp_path / "a.md")))) == ["c.md", "#c"]


def test_external_links_are_encrypted():
    assert len(external()) >= 1
    assert [url for url in external() if url.startswith("http:")] == []


def status_of(url):
    """Return the status of an answer; some sites refuse programs, with 403."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.long
@pytest.mark.skipif("not has_network()", reason="needs a network")
@pytest.mark.parametrize("url", external())
def test_external_link_leads_to_a_page(url):
    assert status_of(url) not in (404, 410)
