"""Text of others in messages of mlxdist: what a terminal would obey is made visible.

Ranks, other hosts, checkpoints and names of files may hold control characters. These
move the cursor, clear lines or reverse their order, and so could make a message look
like another one.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

# Spaces of other languages and of typography, which no terminal obeys.
_HARMLESS = frozenset("\u00a0\u3000")


def visible(text: str) -> str:
    r"""Return a text of one line: control characters become escapes such as `\x1b`.

    So do the ends of lines, characters without width, those that change the direction
    of writing, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() or x in _HARMLESS else _escape(x) for x in text)


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
    return visible_lines(text).replace("\nmlxdist", "\n  mlxdist")
