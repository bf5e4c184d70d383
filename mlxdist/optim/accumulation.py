"""Gradient accumulation: the weighted sums of a step's micro-batches on this rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx

from ..arrays import device
from ..arrays.dtypes import dtype_name
from ..arrays.types import Array, Dtype, Flat
from ..comm.agreement import weight_problem
from ..comm.share_sums import ShareSums
from ..layout.sharding import Plan


class Node(NamedTuple):
    """The weighted sum of 2^level micro-batches; of any number where not pairwise."""

    level: int
    sums: Flat
    weight: float


class MicroBatches:
    """The micro-batches of a step so far.

    Args:
        every: how many make a step.
        pairwise: add them in pairs, over all micro-batches of all ranks, as
            pairwise_sum.py does; holds up to log2 of their number of sums.
        sharded: average each over the ranks, and add up this rank's share.

    Attributes:
        shares: what is added up so, of the step so far.
    """

    def __init__(self, every: int, *, pairwise: bool, sharded: bool = False):
        self.every = every
        self.pairwise, self.sharded = pairwise, sharded
        self.count = 0
        self.problem: str | None = None
        self._no_sync_depth = 0
        self._nodes: list[Node] = []
        self.shares = ShareSums()

    def drop(self) -> None:
        """Discard all micro-batches; the step begins anew."""
        self.count = 0
        self.problem = None
        self._nodes = []
        self.shares = ShareSums()

    def refuse_unapplied(self) -> None:
        """Raise ValueError in the middle of a step."""
        if self.count:
            raise ValueError(
                f"{self.count} micro-batches of a step are added up and not applied "
                "yet: save after the step's last update"
            )

    @property
    def expects_more(self) -> bool:
        """Whether the next gradients are not the step's last ones."""
        return self._no_sync_depth > 0 or self.count + 1 < self.every

    @property
    def sends_next(self) -> bool:
        """Whether the next gradients are sent, and not added up whole."""
        return not self.expects_more or (self.sharded and not self.in_no_sync)

    @property
    def weight_elsewhere(self) -> float:
        """Weight of the micro-batches that were sent before; inf if more follow."""
        return math.inf if self.expects_more else self.shares.weight

    @property
    def active(self) -> bool:
        """Whether the ranks exchange sums of micro-batches, and not gradients."""
        return self.pairwise or self.count > 0 or self.every > 1

    @property
    def in_no_sync(self) -> bool:
        return self._no_sync_depth > 0

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """While in it, all gradients are accumulated."""
        self._no_sync_depth += 1
        try:
            yield
        finally:
            self._no_sync_depth -= 1

    def add(
        self, gradients: Flat, weight: float | None, plan: Plan, problem: str | None
    ) -> None:
        """Add a micro-batch that is not the last one. Evaluates its gradients.

        Bucket by bucket, and drops them from the dict. The first problem is kept until
        the step's last micro-batch, when all ranks meet; those between are not added.
        """
        problem = self.problem or problem or weight_problem(weight)
        if problem is None:
            self._push(gradients, _number(weight))
            problem = self._evaluate(plan)
        else:
            self.count += 1
        if problem is not None and self.problem is None:
            self.problem = f"micro-batch {self.count}: {problem}"
            self._nodes = []

    def _evaluate(self, plan: Plan) -> str | None:
        """Evaluate the last sums. Returns why they can't be."""
        sums = self._nodes[-1].sums
        try:
            for bucket in plan.buckets:
                device.evaluate([sums[entry.path] for entry in bucket.entries])
        except RuntimeError as error:  # of the user's computation, or out of memory
            device.settle()
            return f"its gradients can't be evaluated: {error}"
        return None

    def problem_with(self, last: float | None, ranks: int) -> str | None:
        """Return what is wrong with this rank's micro-batches and the last weight."""
        problem = self.problem or weight_problem(last)
        if problem is None and self.pairwise and ranks > 1:
            problem = pairwise_problem(self.count + 1, ranks)
        return problem

    def weight_with(self, last: float | None) -> float:
        """Return the weight of all micro-batches, with the last one."""
        nodes = [Node(n.level, {}, n.weight) for n in self._nodes]
        nodes = _pushed(nodes, Node(0, {}, _number(last)), self.pairwise)
        return _merged(nodes).weight

    def finish(self, gradients: Flat, weight: float | None) -> Flat:
        """Return the sums with the last micro-batch, lazy, and begin a new step."""
        sums = self.take(gradients, weight)
        self.drop()
        return sums

    def take(self, gradients: Flat, weight: float | None) -> Flat:
        """Return the sums with one more micro-batch, lazy, to be sent."""
        self._push(gradients, _number(weight))
        sums = _merged(self._nodes).sums
        self._nodes = []
        return sums

    def _push(self, gradients: Flat, weight: float) -> None:
        node = Node(0, _weighted(gradients, weight), weight)
        self._nodes = _pushed(self._nodes, node, self.pairwise)
        self.count += 1


def _pushed(nodes: list[Node], node: Node, pairwise: bool) -> list[Node]:
    """Return the nodes with one more, merged; in pairs, only with its own level."""
    nodes = [*nodes, node]
    while len(nodes) > 1 and (not pairwise or nodes[-1].level == nodes[-2].level):
        _merge_last(nodes)
    return nodes


def _merged(nodes: list[Node]) -> Node:
    while len(nodes) > 1:
        _merge_last(nodes)
    return nodes[0]


def _merge_last(nodes: list[Node]) -> None:
    """Replace the last two nodes by their sum."""
    right, left = nodes.pop(), nodes.pop()
    # Each left array is dropped as its sum is made, so that MLX can reuse its memory.
    sums = {path: left.sums.pop(path) + right.sums[path] for path in right.sums}
    nodes.append(Node(left.level + 1, sums, left.weight + right.weight))


def pairwise_problem(count: int, ranks: int) -> str | None:
    """Return why micro-batches on several ranks can't be added in pairs, or None."""
    if count > 0 and count & (count - 1) == 0:
        return None
    return (
        f"reproducible=True adds micro-batches in pairs; {count} on each of {ranks} "
        "ranks don't pair up: use a power of two on each rank"
    )


def sum_dtype(dtype: str) -> Dtype:
    """Return the dtype in which gradients of a dtype are summed."""
    return mx.float64 if dtype == "float64" else mx.float32


def _weighted(gradients: Flat, weight: float) -> Flat:
    return {path: _times(gradients.pop(path), weight) for path in list(gradients)}


def _times(array: Array, weight: float) -> Array:
    wide = sum_dtype(dtype_name(array.dtype))
    if weight == 0:  # a batch without examples may have nan gradients
        return mx.zeros(array.shape, wide)
    array = array.astype(wide)
    return array if weight == 1 else array * weight


def _number(weight: float | None) -> float:
    return 1.0 if weight is None else float(weight)
