"""The arguments of one update, by path, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from ..arrays.dtypes import dtype_of
from ..arrays.tree_index import TreeIndex
from ..arrays.trees import leaves_of
from ..arrays.types import Array, Flat, Tree
from ..layout.entries import Entry
from ..layout.sharding import Plan

_INIT_REMEDY = (
    ". After freezing or adding layers call optimizer.init(model) again; it keeps the "
    "state of what stays"
)
_CAST_REMEDY = (
    ". Cast it, as in g.astype(p.dtype); to add up micro-batches in float32 use "
    "accumulate=; after model.set_dtype() call optimizer.init(model) again"
)


class TreeIndexes(NamedTuple):
    """Where each gradient is in its tree, and its parameter in a tree that has more."""

    gradients: TreeIndex
    parameters: TreeIndex

    @classmethod
    def of(cls, plan: Plan, batch: Batch) -> TreeIndexes:
        # With the plan's own path objects: a lookup of an equal one takes longer.
        planned = {path: path for path in plan.by_path}
        paths = [planned.get(path, path) for path in batch.gradients]
        return cls(TreeIndex(paths, like=batch.tree), TreeIndex(paths))


@dataclass
class Batch:
    """The arguments of one step, by path.

    Attributes:
        gradients: this rank's; empty for a step of the schedules alone.
        parameters: those that the gradients are for.
        problem: why the gradients can't be used, or None.
        index: of the trees, where they are those of earlier steps.
        tree: that of the gradients, or its structure alone.
        call: the method that was called, for errors and records.
        notes: lines for the error where the ranks disagree.
        outputs: of the loss function, where the gradients belong to this step, which
            drops each of them when it is sent; the loss is first.
    """

    gradients: Flat
    parameters: Flat
    weight: float | None
    problem: str | None = None
    index: TreeIndexes | None = None
    tree: Tree = None
    call: str = "update"
    notes: list[str] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)


def read_batch(
    index: TreeIndexes | None, gradients: Tree, parameters: Tree, weight: float | None
) -> Batch:
    """Flatten the arguments of an update. Raises nothing: `problem` says what is wrong.

    Args:
        index: of the trees of earlier steps, which saves the search.
    """
    if index is not None:
        try:
            flat = index.gradients.flat(gradients), index.parameters.flat(parameters)
            return Batch(*flat, weight, index=index, tree=gradients)
        except (LookupError, TypeError, ValueError):
            pass  # another tree: search it for what is wrong, if anything is
    tree, problem = matching(gradients, parameters)
    flat = leaves_of(gradients), leaves_of(tree)
    return Batch(*flat, weight, problem, tree=gradients)


def matching(gradients: Tree, parameters: Tree) -> tuple[Tree, str | None]:
    """Return the parameters that gradients are for, or why there are none."""
    try:
        return tree_map(lambda _, parameter: parameter, gradients, parameters), None
    except (KeyError, IndexError, TypeError) as error:
        return {}, (
            "the gradients have another structure than the parameters: "
            f"{type(error).__name__} {error}"
        )


def gradient_problem(plan: Plan, gradients: Flat) -> str | None:
    """Return how gradients differ from the plan's parameters, or None.

    A step may leave parameters out. One without gradients moves the schedules alone.
    """
    unknown = len(gradients)
    for entry in plan.entries:
        if entry.path not in gradients:
            continue
        unknown -= 1
        array = gradients[entry.path]
        if not isinstance(array, mx.array):
            kind = type(array).__name__
            return f"the gradient of {entry.path} is a {kind}, wanted an mx.array"
        shape = tuple(array.shape)
        if shape != entry.shape or array.dtype != dtype_of(entry.dtype):
            remedy = _CAST_REMEDY if shape == entry.shape else _INIT_REMEDY
            return (
                f"the gradient of {entry.path} is {array.dtype}{list(shape)}, "
                f"wanted {entry.dtype}{list(entry.shape)}{remedy}"
            )
    if unknown:
        extra = min(gradients.keys() - plan.by_path.keys())
        if not extra:
            kind = type(gradients[extra]).__name__
            return f"the gradients are a {kind}, wanted a tree of arrays"
        return f"there is a gradient for {extra}, new since init(){_INIT_REMEDY}"
    return None


def missing_entries(plan: Plan, batch: Batch) -> list[Entry]:
    """Return the parameters that a step of other ones leaves out."""
    gradients = batch.gradients
    if not gradients or len(gradients) == len(plan.entries):
        return []
    return [entry for entry in plan.entries if entry.path not in gradients]


def missing_problem(plan: Plan, batch: Batch) -> str | None:
    """Return which gradient is missing, where none may be, or None."""
    missing = missing_entries(plan, batch)
    return f"there is no gradient for {missing[0]}{_INIT_REMEDY}" if missing else None


def missing_lines(plan: Plan, batch: Batch) -> list[str]:
    """Return what a step leaves out as text, to be compared across ranks."""
    return [
        f"no gradient for {entry} (all ranks leave out the same ones: zeros stand for "
        "a parameter that a rank did not use)"
        for entry in missing_entries(plan, batch)
    ]


def batch_problem(plan: Plan, batch: Batch) -> str | None:
    """Return why a batch doesn't fit the plan, or None; a plan of nothing fits all."""
    problem = gradient_problem(plan, batch.gradients) if plan.entries else None
    return problem or batch.problem
