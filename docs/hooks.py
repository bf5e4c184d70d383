"""Hooks of mkdocs: pages from files outside of docs/, and links to the repository.

Links are written relative to the file, so that they work in a checkout and on a host of
repositories. Here a link to a file of the repository becomes one to its page, or, if it
has none, to a copy of the file in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "launch/README.md": "first_cluster.md",
    "benchmarks/results/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
IMAGES = ("benchmarks/results/*.svg", "benchmarks/results/*.png")
SOURCES = {page: source for source, page in PAGES.items()}
COPIES = "files/"  # the folder of the site with files that pages link to
LINK = re.compile(r"(?P<before>\]\(|(?:src|srcset|href)=\")(?P<target>[^)\"\s#]+)")
PICTURE = re.compile(
    r'<picture>\s*<source media="[^"]*" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)"(?P<rest>[^>]*)>\s*</picture>'
)
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and images that are outside of docs/."""
    images = [path for pattern in IMAGES for path in sorted(ROOT.glob(pattern))]
    for path, uri in [
        *((ROOT / source, page) for source, page in PAGES.items()),
        *((path, path.relative_to(ROOT).as_posix()) for path in images),
    ]:
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Return the page with links that work on the site."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def replace(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target or target.startswith("/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = uri_of(path, config, files)
        return match["before"] + posixpath.relpath(uri, posixpath.dirname(here) or ".")

    parts = CODE.split(markdown)
    parts[::2] = [PICTURE.sub(both, LINK.sub(replace, part)) for part in parts[::2]]
    return "".join(parts)


def both(picture: re.Match[str]) -> str:
    """Return a picture for light and for dark pages, of which the theme hides one."""
    light = f'<img src="{picture["light"]}#only-light"{picture["rest"]}>'
    return light + f'<img src="{picture["dark"]}#only-dark"{picture["rest"]}>'


def uri_of(path: str, config: MkDocsConfig, files: Files) -> str:
    """Return where the site has a file of the repository; add a copy if it lacks it.

    Args:
        path: relative to the root of the repository. Where there is no such file, the
            result isn't in the site either, and the build fails.
    """
    uri = PAGES.get(path, path.removeprefix("docs/"))
    if files.get_file_from_path(uri) is not None or not (ROOT / path).is_file():
        return uri
    copy = COPIES + path
    if files.get_file_from_path(copy) is None:
        files.append(File.generated(config, copy, abs_src_path=str(ROOT / path)))
    return copy
