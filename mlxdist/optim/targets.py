"""Where the new parameters of a step go: into a model, or into a new tree."""

from __future__ import annotations

from typing import Protocol

from mlx.nn import Module

from ..arrays.tree_index import TreeIndex
from ..arrays.types import Flat, Tree
from ..comm.gather import Slot, Whole
from ..layout.paths import KeyPath


class Target(Protocol):
    """Receives each bucket's new parameters.

    Attributes:
        parameters: the tree that contains the present ones.
    """

    parameters: Tree

    def publish(self, index: TreeIndex, whole: Whole) -> None:
        """Take a bucket's parameters; `index` is that of the gradients' tree."""

    def slot(self, index: TreeIndex, path: KeyPath) -> Slot | None:
        """Return where a parameter is that may be overwritten; None if it may not."""


class ModelTarget:
    """Replaces a model's parameters, so that there is never a second set of them all.

    Attributes:
        was_updated: whether a bucket was published.

    Raises:
        ValueError: where it is not a model.
    """

    def __init__(self, model: Module):
        if not isinstance(model, Module):
            raise ValueError(
                f"update() wants a model and found a {type(model).__name__}; for a "
                "tree of parameters there is apply_gradients()"
            )
        self.parameters: Tree = model
        self.was_updated = False
        self._slots: dict[KeyPath, Slot] | None = None

    def publish(self, index: TreeIndex, whole: Whole) -> None:
        self.was_updated = True
        for entry, array in zip(whole.bucket.entries, whole.arrays, strict=True):
            slot = self.slot(index, entry.path)
            if slot is not None:
                container, key = slot
                container[key] = array

    def slot(self, index: TreeIndex, path: KeyPath) -> Slot | None:
        if self._slots is None:
            self._slots = index.slots(self.parameters)
        return self._slots.get(path)


class TreeTarget:
    """Collects new parameters by path."""

    def __init__(self, parameters: Tree):
        self.parameters = parameters
        self.leaves: Flat = {}

    def publish(self, index: TreeIndex, whole: Whole) -> None:
        for entry, array in zip(whole.bucket.entries, whole.arrays, strict=True):
            self.leaves[entry.path] = array

    def slot(self, index: TreeIndex, path: KeyPath) -> Slot | None:
        return None
