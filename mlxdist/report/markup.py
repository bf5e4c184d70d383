"""HTML and SVG from text that may be hostile: this module alone writes it, escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..launcher.visible_text import visible

_VOID = frozenset(("meta",))


class Markup(str):
    """Text that is valid HTML. Other text is escaped where it is put into one."""

    __slots__ = ()


def text(plain: str) -> Markup:
    """Return text as it is to be read, with its control characters made visible."""
    return Markup(escape(visible(plain)))


def join(parts: Iterable[str]) -> Markup:
    """Return markup and escaped text in a row."""
    return Markup("".join(x if isinstance(x, Markup) else text(x) for x in parts))


def element(tag: str, *contents: str, cls: str = "", **attributes: object) -> Markup:
    """Return an element.

    Args:
        contents: markup, and text that is escaped.
        cls: its class.
        attributes: their underscores become hyphens.
    """
    if cls:
        attributes["class"] = cls
    words = [
        f' {name.replace("_", "-")}="{text(str(value))}"'
        for name, value in attributes.items()
    ]
    end = "" if tag in _VOID else f"</{tag}>"
    return Markup(f"<{tag}{''.join(words)}>{join(contents)}{end}")
