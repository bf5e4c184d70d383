"""Text of hosts and files for rich, which would take parts of it for its own markup."""

from __future__ import annotations

from ..launcher.visible_text import message_of


def plain(text: str) -> str:
    """Return text that rich prints as it is, apart from escaped control characters."""
    from rich.markup import escape  # slow to import

    return escape(message_of(text))
