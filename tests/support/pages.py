"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from typing import NamedTuple

from .jobs import ROOT

OUTSIDE = ("README.md", "CONTRIBUTING.md", "launch/README.md")
FENCE = re.compile(
    r"(?:^<!-- raises: (?P<error>\w+): (?P<message>.*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
PRELUDE = re.compile(r"^<!-- prelude: (\w+) -->$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block. `line` is that of its first line of code, from 1."""

    page: Page
    line: int
    language: str
    code: str
    error: str | None = None
    message: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Page(NamedTuple):
    """A page, by its path in the repository."""

    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def text(self) -> str:
        return (ROOT / self.path).read_text()

    @property
    def prelude(self) -> str | None:
        """The name of the hidden set-up of its Python blocks."""
        found = PRELUDE.search(self.text)
        return found and found[1]

    def blocks(self, *languages: str) -> list[Block]:
        """Return the blocks of some languages, or, without one, all blocks."""
        text = self.text
        return [
            Block(
                self,
                text.count("\n", 0, match.start("code")) + 1,
                match["language"].strip(),
                textwrap.dedent(match["code"]),
                match["error"],
                match["message"] or "",
            )
            for match in FENCE.finditer(text)
            if not languages or match["language"].strip() in languages
        ]

    def commands(self) -> list[str]:
        """Return the commands of its bash blocks, without comments."""
        return [
            command
            for block in self.blocks("bash")
            for line in block.code.replace("\\\n", " ").splitlines()
            if (command := without_comment(line))
        ]

    def quoted(self) -> list[str]:
        """Return what is in single backticks, outside of blocks."""
        return re.findall(r"`([^`\n]+)`", FENCE.sub("", self.text))


def without_comment(line: str) -> str:
    """Return a line of a shell without a comment, quotes kept."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return " ".join(lexer)


def pages() -> list[Page]:
    """Return all pages: those of docs/ and those at other places of the repository."""
    inside = (ROOT / "docs").rglob("*.md")
    paths = [path.relative_to(ROOT).as_posix() for path in inside]
    return [Page(path) for path in sorted([*paths, *OUTSIDE])]
