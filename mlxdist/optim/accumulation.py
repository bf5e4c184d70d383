"""Micro-batches: their gradients are summed on this rank until the ranks exchange them.

Sums are float32 whatever the gradients are, and weighted: a step is the mean over all
micro-batches of all ranks, sum(weight * gradient) / sum(weight).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx

from ..arrays.trees import dtype_name
from ..arrays.types import Array, Flat
from ..comm.agreement import weight_problem
from ..layout.sharding import Plan


class Node(NamedTuple):
    """The weighted sum of 2^level micro-batches, or of any number outside a tree."""

    level: int
    sums: Flat
    weight: float


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


class Accumulation:
    """The micro-batches of a step so far.

    Args:
        every: how many make a step.
        in_tree: adds them in the one binary tree over all micro-batches of all ranks,
            see binary_tree.py; holds log2 of their number as many sums.
    """

    def __init__(self, every: int, *, in_tree: bool):
        self.every = every
        self.in_tree = in_tree
        self.held = 0  # how many no_sync() there are around
        self.drop()

    def drop(self) -> None:
        """Begins anew."""
        self.count = 0
        self.problem: str | None = None
        self._nodes: list[Node] = []

    @property
    def waits(self) -> bool:
        """Whether the next gradients are not the step's last ones."""
        return self.held > 0 or self.count + 1 < self.every

    @property
    def sums_up(self) -> bool:
        """Whether what the ranks exchange next are sums, and not gradients."""
        return self.in_tree or self.count > 0 or self.every > 1

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    def refuse(self, problem: str) -> None:
        """Keeps what is wrong with a micro-batch until all ranks can be told."""
        self.problem = self.problem or f"micro-batch {self.count + 1}: {problem}"
        self.count += 1

    def add(self, gradients: Flat, weight: float | None) -> None:
        """Adds a micro-batch that is not the last one. Evaluates its gradients."""
        problem = weight_problem(weight)
        if problem is not None:
            self.refuse(problem)
            return
        self._push(gradients, _number(weight))
        # On a CPU memory is taken when a task is given.
        on_cpu = mx.default_device() == mx.cpu
        (mx.eval if on_cpu else mx.async_eval)(self._nodes[-1].sums)

    def problem_with(self, last: float | None, ranks: int) -> str | None:
        """What is wrong with this rank's micro-batches, the last one's weight too."""
        problem = self.problem or weight_problem(last)
        alone = not self.in_tree or ranks == 1
        if problem or alone or is_power_of_two(self.count + 1):
            return problem
        return tree_problem(self.count + 1, ranks)

    def weight_with(self, last: float | None) -> float:
        """The weight of all micro-batches, with the last one."""
        nodes = [Node(n.level, {}, n.weight) for n in self._nodes]
        return _weight_of(_pushed(nodes, Node(0, {}, _number(last)), self.in_tree))

    def finish(self, gradients: Flat, weight: float | None) -> Flat:
        """The sums with the last micro-batch, lazy; the next step begins anew."""
        self._push(gradients, _number(weight))
        while len(self._nodes) > 1:
            _join(self._nodes)
        sums = self._nodes.pop().sums
        self.drop()
        return sums

    # -- checkpoints

    def total(self, plan: Plan) -> tuple[Flat, float]:
        """This rank's sums and weight so far, as a checkpoint has them."""
        nodes = list(self._nodes)
        sums = {e.path: mx.zeros(e.shape, sum_dtype(e.dtype)) for e in plan.entries}
        for node in reversed(nodes):
            sums = {path: node.sums[path] + array for path, array in sums.items()}
        return sums, sum(node.weight for node in nodes)

    def resume(self, sums: Flat, weight: float, count: int) -> None:
        """Goes on from sums that were saved."""
        self.drop()
        self.count = count
        self._nodes = [Node(0, sums, weight)]

    # -- how

    def _push(self, gradients: Flat, weight: float) -> None:
        node = Node(0, _weighted(gradients, weight), weight)
        self._nodes = _pushed(self._nodes, node, self.in_tree)
        self.count += 1


def _pushed(nodes: list[Node], node: Node, in_tree: bool) -> list[Node]:
    """The nodes with one more, joined with its like; in a tree equals alone join."""
    nodes = [*nodes, node]
    while len(nodes) > 1 and (not in_tree or nodes[-1].level == nodes[-2].level):
        _join(nodes)
    return nodes


def _join(nodes: list[Node]) -> None:
    """Makes one of the last two."""
    right, left = nodes.pop(), nodes.pop()
    # Each left one is dropped as its sum is made, so that it can be made in place.
    sums = {path: left.sums.pop(path) + right.sums[path] for path in right.sums}
    nodes.append(Node(left.level + 1, sums, left.weight + right.weight))


def _weight_of(nodes: list[Node]) -> float:
    while len(nodes) > 1:
        _join(nodes)
    return nodes[0].weight


def tree_problem(count: int, ranks: int) -> str:
    return (
        f"reproducible=True adds micro-batches in one binary tree, and {count} of them "
        f"on each of {ranks} ranks are no part of it: take a power of two a rank"
    )


def sum_dtype(dtype: str) -> Any:
    """In what gradients of a dtype are summed."""
    return mx.float64 if dtype == "float64" else mx.float32


def _weighted(gradients: Flat, weight: float) -> Flat:
    return {path: _times(array, weight) for path, array in gradients.items()}


def _times(array: Array, weight: float) -> Array:
    wide = sum_dtype(dtype_name(array.dtype))
    if weight == 0:  # a batch without examples may well have nan for its gradients
        return mx.zeros(array.shape, wide)
    array = array.astype(wide)
    return array if weight == 1 else array * weight


def _number(weight: float | None) -> float:
    return 1.0 if weight is None else float(weight)
