"""Where the leaves of a tree are, found once, so that a step need not search for them.

`tree_flatten` makes a string of each path at every call, which for thousands of small
tensors costs more than their update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

from .types import Tree


@dataclass
class _Container:
    size: int = -1  # how many children it has, of any kind; -1 where it does not matter
    keys: list[Any] = field(default_factory=list)  # of those children that are leaves
    children: dict[Any, _Container] = field(default_factory=dict)
    get: Callable[[Any], Sequence[Any]] = lambda _: ()


class Structure:
    """The places of some paths in trees of one structure.

    Args:
        paths: dotted, as `tree_flatten` gives them; a number is a place in a list.
        like: a tree; `leaves` then refuses all that have other children than it has.
    """

    def __init__(self, paths: Iterable[str], like: Tree = None):
        self._root = _Container()
        self._given = tuple(paths)
        for path in self._given:
            *parents, last = [int(p) if p.isdecimal() else p for p in path.split(".")]
            place = self._root
            for part in parents:
                place = place.children.setdefault(part, _Container())
            place.keys.append(last)
        _close(self._root, like)
        self.paths = tuple(_paths(self._root, ""))

    def leaves(self, tree: Tree) -> list[Any]:
        """What stands at the paths, in the order of `self.paths`.

        Raises:
            LookupError or TypeError: where the tree has another structure.
        """
        found: list[Any] = []
        _collect(self._root, tree, found)
        return found

    def flat(self, tree: Tree) -> dict[str, Any]:
        """`{path: leaf}`. Raises as `leaves` does."""
        return dict(zip(self.paths, self.leaves(tree), strict=True))

    def places(self, tree: Tree) -> dict[str, tuple[Any, Any]]:
        """`{path: (container, key)}`: where to write a leaf.

        Of paths that lead to one place, as tied weights have, the last one given is in
        it alone, as in MLX, where the last one written stays.
        """
        found: list[tuple[Any, Any]] = []
        _locate(self._root, tree, found)
        every = dict(zip(self.paths, found, strict=True))
        last = {(id(c), key): path for path in self._given for c, key in [every[path]]}
        if len(last) == len(every):
            return every
        return {path: every[path] for path in last.values()}

    def rebuilt(self, tree: Tree, leaves: Mapping[str, Any]) -> Tree:
        """The tree, which has the structure of `like`, with other leaves."""
        return _rebuilt(self._root, tree, iter(map(leaves.__getitem__, self.paths)))


def _close(place: _Container, like: Tree) -> None:
    if like is not None:
        place.size = len(like)
        keys = like.keys() if isinstance(like, dict) else range(len(like))
        for key in set(keys) - place.children.keys() - set(place.keys):
            place.children[key] = _Container()  # empty, and has to stay so
    if len(place.keys) == 1:
        place.get = partial(_only, place.keys[0])
    elif place.keys:
        place.get = itemgetter(*place.keys)
    for key, child in place.children.items():
        _close(child, None if like is None else like[key])


def _only(key: Any, tree: Tree) -> tuple[Any]:
    return (tree[key],)


def _paths(place: _Container, before: str) -> Iterable[str]:
    yield from (f"{before}{key}" for key in place.keys)
    for key, child in place.children.items():
        yield from _paths(child, f"{before}{key}.")


def _collect(place: _Container, tree: Tree, found: list[Any]) -> None:
    if place.size >= 0 and len(tree) != place.size:
        raise LookupError("another number of children")
    found.extend(place.get(tree))
    for key, child in place.children.items():
        _collect(child, tree[key], found)


def _locate(place: _Container, tree: Tree, found: list[tuple[Any, Any]]) -> None:
    found.extend((tree, key) for key in place.keys)
    for key, child in place.children.items():
        _locate(child, tree[key], found)


def _rebuilt(place: _Container, tree: Tree, leaves: Any) -> Tree:
    new = {key: next(leaves) for key in place.keys}
    for key, child in place.children.items():
        new[key] = _rebuilt(child, tree[key], leaves)
    if isinstance(tree, dict):
        return {key: new[key] for key in tree}
    return type(tree)(new[index] for index in range(len(tree)))
