"""Text of others in messages of mlxdist: what a terminal would obey is made visible.

Ranks, other hosts, checkpoints and names of files may hold control characters. These
move the cursor, clear lines or reverse their order, and so could make a message look
like another one.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

import re

# Spaces of other languages and of typography, which no terminal obeys.
_HARMLESS = frozenset("\u00a0\u3000")
# Letters and marks that show nothing, though Python takes them for printable ones:
# Unicode's "default ignorable" ones, such as fillers and selectors of variants.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
# A line that looks like one of ours, whatever marks and signs are in front of it.
_LOOKS_OURS = re.compile(r"\n(?=[^\w\n]*mlxdist)")


def visible(text: str) -> str:
    r"""Return a text of one line: control characters become escapes such as `\x1b`.

    So do the ends of lines, characters without width, those that change the direction
    of writing, and halves of surrogate pairs.
    """
    if text.isprintable() and _INVISIBLE.search(text) is None:
        return text
    return "".join(x if _is_visible(x) else _escape(x) for x in text)


def _is_visible(character: str) -> bool:
    if _INVISIBLE.fullmatch(character):
        return False
    return character.isprintable() or character in _HARMLESS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def visible_lines(text: str) -> str:
    r"""Return a text of several lines, of which each is `visible`; tabs are kept."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in lines)


def visible_bytes(data: bytes) -> bytes:
    """Return `visible_lines` of bytes that a program has printed, without zeros."""
    text = data.replace(b"\0", b"").decode(errors="backslashreplace")
    return visible_lines(text).encode()


def message_of(text: str) -> str:
    """Return the `visible_lines` of a message, of which only the first begins as ours.

    Later lines may be somebody else's, and are indented if they look like a message.
    """
    return _LOOKS_OURS.sub("\n  ", visible_lines(text))
