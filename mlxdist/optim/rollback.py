"""State as it was before an error, and Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..arrays.types import Tree


class SavedStates:
    """Contents of dicts of state: references, since arrays are never written to."""

    def __init__(self, states: Iterable[Tree] = ()):
        self._saved = [(state, _copied(state)) for state in states]

    def restore(self) -> None:
        """Put it back."""
        for state, content in self._saved:
            state.clear()
            state.update(content)


def _copied(tree: Tree) -> Tree:
    """Containers copied, with the same leaves."""
    if isinstance(tree, dict):
        return {
            key: _copied(value) if isinstance(value, dict | list) else value
            for key, value in tree.items()
        }
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C interrupt the program at the end of the body; a second one at once.

    Only where Python's own handler would raise KeyboardInterrupt.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if handler is not signal.default_int_handler or not is_main:
        yield
        return
    pressed = 0

    def count(number: int, frame: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, count)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed == 1:
            raise KeyboardInterrupt
