"""The site: built without a warning, complete, and with nothing from elsewhere."""

import ast
import os
import re
import subprocess
import sys

import pytest

from tests.support.jobs import ROOT
from tests.support.pages import pages

PACKAGES = ("", ".trackers", ".report", ".integrations.mlx_lm")  # of the API reference
# What a browser would fetch: a link that is followed by hand is not.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)[^>]* (?:src|srcset)=\"?(?:https?:)?//[^>]*>"
    r"|<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?(?:https?:)?//"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*command, "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    log = done.stdout + done.stderr  # --quiet would count no warnings
    assert done.returncode == 0, log
    assert "WARNING" not in log
    return folder


def test_site_has_every_page(site):
    inside = [page.path for page in pages() if page.path.startswith("docs/")]
    html = [path.removeprefix("docs/")[:-3] + ".html" for path in inside]
    names = [*html, "first_cluster.html", "contributing.html", "benchmarks.html"]
    assert [name for name in names if not (site / name).exists()] == []


def public_names(package):
    """Return a package's __all__, without importing what it needs, such as mlx-lm."""
    source = ROOT.joinpath("mlxdist", *package.split("."), "__init__.py").read_text()
    (names,) = re.findall(r"^__all__ = (\[.*?\])", source, re.DOTALL | re.MULTILINE)
    return sorted(name for name in ast.literal_eval(names) if not is_constant(name))


def is_constant(name):
    return name.isupper() or name == "__version__"


@pytest.mark.parametrize("package", PACKAGES)
def test_site_documents_every_public_function_and_class(package, site):
    api = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    names = [f"mlxdist{package}.{name}" for name in public_names(package)]
    assert [name for name in names if f'id="{name}"' not in api] == []


def test_site_has_pictures_for_both_schemes_and_copies_of_linked_files(site):
    concepts = (site / "concepts.html").read_text()
    for scheme, file in (("light", "memory_peaks"), ("dark", "memory_peaks_dark")):
        assert f'src="benchmarks/results/{file}.svg#only-{scheme}"' in concepts
        assert (site / "benchmarks" / "results" / f"{file}.svg").exists()
    script = (ROOT / "launch" / "train_lm.py").read_bytes()
    assert (site / "files" / "launch" / "train_lm.py").read_bytes() == script


def test_site_fetches_nothing_from_elsewhere(site):
    html = {path.name: path.read_text() for path in site.rglob("*.html")}
    fetched = {name: FETCHED.findall(text) for name, text in html.items()}
    assert {name: tags for name, tags in fetched.items() if tags} == {}
