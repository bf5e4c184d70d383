"""The site: built without a warning, complete, and with nothing from elsewhere."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from tests.support.jobs import ROOT
from tests.support.pages import pages

# What a browser would fetch: a link that is followed by hand is not.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)[^>]* (?:src|srcset)=\"?(?:https?:)?//[^>]*>"
    r"|<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?(?:https?:)?//"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_site_has_every_page(site):
    inside = [page.path for page in pages() if page.path.startswith("docs/")]
    html = [path.removeprefix("docs/")[:-3] + ".html" for path in inside]
    names = [*html, "first_cluster.html", "contributing.html", "benchmarks.html"]
    assert [name for name in names if not (site / name).exists()] == []


@pytest.mark.parametrize("package", ["", ".trackers", ".integrations.mlx_lm"])
def test_site_documents_every_public_name(package, site):
    api = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    module = importlib.import_module(f"mlxdist{package}")
    public = sorted(set(module.__all__) - {"__version__"})
    names = [f"{module.__name__}.{name}" for name in public]
    assert [name for name in names if f'id="{name}"' not in api] == []


def test_site_fetches_nothing_from_elsewhere(site):
    html = {path.name: path.read_text() for path in site.rglob("*.html")}
    fetched = {name: FETCHED.findall(text) for name, text in html.items()}
    assert {name: tags for name, tags in fetched.items() if tags} == {}
