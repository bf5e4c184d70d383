"""Paths of the leaves of a tree, such as `layers.0.weight`."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from functools import cached_property, lru_cache

# A key of a dict, which is text as a rule, or an index into a list or tuple.
Key = Hashable

# Text keys that would be taken for a number, for two keys, or for another type.
_AMBIGUOUS = re.compile(r'(?s:|0|-?[1-9][0-9]*|<.*|.*[."\ud800-\udfff].*)')
_PARTS = re.compile(r'(?:\A|\.)("(?:[^"\\]|\\.)*"(?=\.|\Z)|[^.]*)')
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_CACHED = 4096  # keys whose text and order are kept
_SORTED_AS_NUMBER = re.compile(r"[0-9]{1,18}")


class KeyPath(tuple[Key, ...]):
    """The keys and indices that lead to a leaf, from the root of its tree.

    `str()` of it is for errors and files: the keys joined by dots. A text key that
    would be ambiguous there is quoted: the dict key "0" is not the list index 0, and
    the key "a.b" is not "b" in "a". Paths sort by their keys, and numbers as numbers:
    `layers.2` comes before `layers.10`.
    """

    @classmethod
    def parse(cls, text: str) -> KeyPath:
        """Return the path with this text. A text of no path is split at its dots."""
        return cls(map(_parsed, _PARTS.findall(text))) if text else cls()

    @cached_property
    def text(self) -> str:
        """What `str()` returns, made once."""
        return ".".join(map(_key_text, self))

    @cached_property
    def order(self) -> tuple[tuple[int, int, str], ...]:
        """What paths are sorted by."""
        return tuple(map(_key_order, self))

    @property
    def dotted(self) -> str:
        """The text of MLX's `tree_flatten`, which other paths may have too."""
        return ".".join(f"{key}" for key in self)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"KeyPath({self.text!r})"

    def __lt__(self, other: tuple[Key, ...]) -> bool:
        assert isinstance(other, KeyPath)
        return self.order < other.order


def _key_text(key: Key) -> str:
    # Thousands of paths share few keys. Subclasses may hold more than their text.
    return _cached_text(key) if type(key) in (str, int) else _text_of(key)


def _text_of(key: Key) -> str:
    if isinstance(key, str):
        text = str.__str__(key)
        if _AMBIGUOUS.fullmatch(text):
            return json.dumps(text, ensure_ascii=not text.isprintable())
        return text
    if isinstance(key, int) and not isinstance(key, bool):
        return str(int(key))
    return f"<{key!r}>"


_cached_text = lru_cache(_CACHED, typed=True)(_text_of)


def _parsed(part: str) -> Key:
    if part.startswith('"'):
        try:
            return str(json.loads(part, strict=False))
        except ValueError:
            return part
    return int(part) if _NUMBER.fullmatch(part) else part


def _key_order(key: Key) -> tuple[int, int, str]:
    return _cached_order(key) if type(key) in (str, int) else _order_of(key)


def _order_of(key: Key) -> tuple[int, int, str]:
    text = _key_text(key).strip('"')
    if _SORTED_AS_NUMBER.fullmatch(text):
        return 0, int(text), str(type(key))
    return 1, 0, text


_cached_order = lru_cache(_CACHED, typed=True)(_order_of)
