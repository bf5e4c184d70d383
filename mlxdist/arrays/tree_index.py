"""An index of a tree's leaves, made once, so that no step has to search for them.

`leaves_of` makes a path for each leaf at every call, which for thousands of small
tensors costs more than their update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter

from ..layout.paths import Key, KeyPath
from .trees import sequence_like
from .types import Array, Flat, Tree


@dataclass
class _Container:
    """A dict or list of the tree.

    Attributes:
        size: number of children of any kind; -1 where it need not be checked.
        keys: of the children that are leaves.
        get: returns those leaves.
    """

    size: int = -1
    keys: list[Key] = field(default_factory=list)
    children: dict[Key, _Container] = field(default_factory=dict)
    get: Callable[[Tree], Sequence[Array]] = lambda _: ()


class TreeIndex:
    """Positions of some paths in all trees of one structure.

    Args:
        paths: of the leaves, such as those of `leaves_of`.
        like: a tree; trees with other children than it has are then refused.
    """

    def __init__(self, paths: Iterable[KeyPath], like: Tree = None):
        self._root = _Container()
        self._given = tuple(paths)
        for path in self._given:
            *parents, last = path
            container = self._root
            for part in parents:
                container = container.children.setdefault(part, _Container())
            container.keys.append(last)
        _prepare(self._root, like)
        # The containers in order, and for each but the root its parent's number, its
        # key there and its size: a loop over them takes half the time of a recursion.
        self._containers = [self._root]
        self._edges: list[tuple[int, Key, int]] = []
        self._add_children(self._root, 0)
        given = {path: path for path in self._given}  # they have their texts cached
        self.paths = tuple(given[path] for path in _paths(self._root, ()))

    def _add_children(self, container: _Container, number: int) -> None:
        for key, child in container.children.items():
            self._edges.append((number, key, child.size))
            self._containers.append(child)
            self._add_children(child, len(self._containers) - 1)

    def _visit(self, tree: Tree) -> list[Tree]:
        """The tree's containers, in the order of `_containers`."""
        visited = [_checked(tree, self._root.size)]
        add = visited.append
        for parent, key, size in self._edges:
            add(_checked(visited[parent][key], size))
        return visited

    def flat(self, tree: Tree) -> Flat:
        """Return `{path: leaf}`.

        Raises:
            LookupError, TypeError or ValueError: where the tree has another structure.
        """
        leaves: list[Array] = []
        for container, part in zip(self._containers, self._visit(tree), strict=True):
            leaves += container.get(part)
        return dict(zip(self.paths, leaves, strict=True))

    def slots(self, tree: Tree) -> dict[KeyPath, tuple[Tree, Key]]:
        """Return `{path: (container, key)}`: where to write a leaf.

        Where several paths lead to one slot, as tied weights do, only the last one
        given is in it, since MLX keeps what was written last.
        """
        visited = self._visit(tree)
        slots = [
            (part, key)
            for container, part in zip(self._containers, visited, strict=True)
            for key in container.keys
        ]
        by_path = dict(zip(self.paths, slots, strict=True))
        if len(set(map(id, visited))) == len(visited):
            return by_path
        last = {
            (id(c), key): path for path in self._given for c, key in [by_path[path]]
        }
        return {path: by_path[path] for path in last.values()}

    def rebuilt(self, tree: Tree, leaves: Mapping[KeyPath, Array]) -> Tree:
        """Return `tree`, which has the structure of `like`, with other leaves."""
        return _rebuilt(self._root, tree, iter(map(leaves.__getitem__, self.paths)))


def _prepare(container: _Container, like: Tree) -> None:
    """Fix the expected sizes, and the fastest way to get the leaves."""
    if like is not None:
        container.size = len(like)
        keys = like.keys() if isinstance(like, dict) else range(len(like))
        for key in set(keys) - container.children.keys() - set(container.keys):
            container.children[key] = _Container()  # empty, and has to stay so
    if len(container.keys) == 1:
        container.get = partial(_only, container.keys[0])
    elif container.keys:
        container.get = itemgetter(*container.keys)
    for key, child in container.children.items():
        _prepare(child, None if like is None else like[key])


def _checked(container: Tree, size: int) -> Tree:
    if size >= 0 and len(container) != size:
        raise LookupError("another number of children")
    return container


def _only(key: Key, tree: Tree) -> tuple[Array]:
    return (tree[key],)


def _paths(container: _Container, parents: tuple[Key, ...]) -> Iterator[KeyPath]:
    yield from (KeyPath((*parents, key)) for key in container.keys)
    for key, child in container.children.items():
        yield from _paths(child, (*parents, key))


def _rebuilt(container: _Container, tree: Tree, leaves: Iterator[Array]) -> Tree:
    new: dict[Key, Tree] = {key: next(leaves) for key in container.keys}
    for key, child in container.children.items():
        new[key] = _rebuilt(child, tree[key], leaves)
    if isinstance(tree, dict):
        return {key: new[key] for key in tree}
    return sequence_like(tree, [new[index] for index in range(len(tree))])
