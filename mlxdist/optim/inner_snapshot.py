"""What a refused call puts back: the wrapped optimizer's state as it was before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.types import Tree
from ..layout.paths import KeyPath
from .inner_optimizer import InnerOptimizer, Leaf


@dataclass(frozen=True)
class InnerSnapshot:
    """The state's dicts, and which optimizer updates which parameter. Copies no array.

    Attributes:
        leaves: of each optimizer its state, its content, whether it was initialized,
            and its parameters' paths.
    """

    leaves: tuple[tuple[Tree, dict[str, Any], bool, list[KeyPath]], ...]
    owners: Mapping[KeyPath, Leaf]
    structure: Tree

    @classmethod
    def of(cls, inner: InnerOptimizer) -> InnerSnapshot:
        return cls(
            tuple(
                (
                    leaf.optimizer.state,
                    dict(leaf.optimizer.state),
                    leaf.is_initialized,
                    leaf.paths,
                )
                for leaf in inner.leaves
            ),
            inner.owners,
            inner.structure,
        )

    def restore(self, inner: InnerOptimizer) -> None:
        """Put everything back."""
        for leaf, saved in zip(inner.leaves, self.leaves, strict=True):
            state, content, is_initialized, leaf.paths = saved
            state.clear()
            state.update(content)
            leaf.optimizer.state = state
            leaf.optimizer._initialized = is_initialized
        inner.owners, inner.structure = dict(self.owners), self.structure
