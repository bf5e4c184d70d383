"""The wrapped optimizer: the MLX optimizers that hold state, and their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.optimizers as optim

from ..arrays.blockwise import Kind
from ..arrays.trees import dict_at, leaves_of, nested, structure
from ..arrays.types import Array, Flat, Named, Tree
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Strategy
from . import hyperparameters, overrides
from .hyperparameters import Hyperparameters, Optimizer
from .quantized_state import NOT_QUANTIZED, QuantizedState
from .state_values import SHARD_KEY, as_array, like
from .update_work import work
from .wrapping import Filter, Wrapping

# Optimizers whose update of one element depends on that element alone, so that a flat
# slice gives the same bits as the tensor. Subclasses are not assumed to be: they may
# declare it with a class attribute `elementwise = True`.
ELEMENTWISE = frozenset(
    {
        optim.SGD,
        optim.RMSprop,
        optim.Adagrad,
        optim.AdaDelta,
        optim.Adam,
        optim.AdamW,
        optim.Adamax,
        optim.Lion,
    }
)


@dataclass
class Leaf:
    """One MLX optimizer that holds state: the only one, or one of a MultiOptimizer's.

    Attributes:
        at: prefix of its part of MLX's state tree: "" or "states.0.".
        paths: the parameters that it updates, set by `InnerOptimizer.assign`.
    """

    optimizer: Optimizer
    at: str
    filters: tuple[Filter, ...] = ()
    paths: list[KeyPath] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its module and class."""
        kind = type(self.optimizer)
        return f"{kind.__module__}.{kind.__qualname__}"

    @property
    def is_mlx_class(self) -> bool:
        """Whether its class is one of MLX's, which make all their state in `init`."""
        return self.name.startswith("mlx.")

    @property
    def is_of_mlx(self) -> bool:
        """Whether all of its code is MLX's: no method was replaced on the object."""
        return self.is_mlx_class and not overrides.is_changed_object(self.optimizer)

    @property
    def is_elementwise(self) -> bool:
        """Whether it may work on flat slices."""
        declared = vars(type(self.optimizer)).get("elementwise", False)
        return self.is_known or bool(declared)

    @property
    def is_known(self) -> bool:
        """Whether it is one of MLX's own elementwise optimizers, and no subclass."""
        known = type(self.optimizer) in ELEMENTWISE
        return known and not overrides.is_changed_object(self.optimizer)

    @property
    def can_be_compiled(self) -> bool:
        """Whether a compiled update is sure to do what the optimizer does."""
        return self.is_known and not hyperparameters.has_arrays(self.optimizer)

    @property
    def steps_whole_trees(self) -> bool:
        """Whether it does more in `apply_gradients` than MLX's base class."""
        return overrides.replaces(self.optimizer, "apply_gradients")

    @property
    def is_initialized(self) -> bool:
        """Whether no user has assigned another state since `init`."""
        return bool(self.optimizer._initialized)

    def scalars(self) -> Named:
        """Step, learning rate and the like, by name; numbers as arrays."""
        state = self.optimizer.state
        kinds = mx.array | bool | int | float
        values = {k: as_array(v) for k, v in state.items() if isinstance(v, kinds)}
        return {name: values[name] for name in sorted(values.keys() - {SHARD_KEY})}

    def settings(self) -> list[str]:
        """Class and hyperparameters as text, to be compared across ranks."""
        return [self.name, *hyperparameters.settings(self.optimizer)]

    def tick(self) -> None:
        """Do what `Optimizer.apply_gradients` does before it looks at a parameter."""
        optimizer = self.optimizer
        for name, schedule in optimizer._schedulers.items():
            optimizer.state[name] = schedule(optimizer.step)
        optimizer.state["step"] = optimizer.step + 1

    def work(self, entry: Entry) -> float:
        """Work of an update, in elements that are only read and written."""
        return work(self.optimizer, entry)


class InnerOptimizer:
    """The optimizer that a `DistributedOptimizer` wraps.

    A MultiOptimizer is walked once, here. Its filters are asked once too, about full
    parameters: one like `lambda path, x: x.ndim == 2` would see 1-D slices otherwise.
    """

    def __init__(self, optimizer: Optimizer, quantized: QuantizedState = NOT_QUANTIZED):
        if not isinstance(optimizer, optim.Optimizer):
            raise ValueError(
                f"the optimizer is {optimizer!r}; it must be an "
                "mlx.optimizers.Optimizer, such as optim.AdamW(3e-4)"
            )
        self.optimizer = optimizer
        self.leaves = tuple(_leaves(optimizer, "", ()))
        self.owners: dict[KeyPath, Leaf] = {}
        self.structure: Tree = {}
        self._quantized = quantized
        self.optimizers = [leaf.optimizer for leaf in self.leaves]
        self.wrapping = Wrapping(optimizer, self.optimizers)
        self.hyperparameters = Hyperparameters(
            (self._prefix(leaf), leaf.optimizer) for leaf in self.leaves
        )

    def assign(self, parameters: Tree) -> None:
        """Find the leaf that updates each parameter, from a tree of full parameters.

        It is the first one whose filters all want it, and the last filter of a
        MultiOptimizer wants everything.
        """
        self.owners = {}
        self.structure = structure(parameters)
        for leaf in self.leaves:
            leaf.paths = []
        for path, array in leaves_of(parameters).items():
            leaf = next(leaf for leaf in self.leaves if _takes(leaf, path, array))
            leaf.paths.append(path)
            self.owners[path] = leaf

    def owner(self, path: KeyPath) -> Leaf:
        """Return the leaf that updates a path."""
        return self.owners[path]

    def moments(self, entry: Entry) -> tuple[tuple[str, Kind], ...]:
        """Return which moments of a parameter are in 8 bits, and how they are."""
        optimizer = self.owner(entry.path).optimizer
        return tuple(self._quantized.moments(optimizer, entry).items())

    def init(self, shard: Flat) -> None:
        """Make the state of the parameters, or slices of them, on this rank."""
        for leaf in self.leaves:
            # Without those that have state: MLX fails on them in named tuples.
            state, paths = leaf.optimizer.state, [p for p in leaf.paths if p in shard]
            part = {path: shard[path] for path in paths if not dict_at(state, path)}
            leaf.optimizer.init(self.nested(part))

    def apply_gradients(self, gradients: Flat, parameters: Flat) -> Flat:
        """Step whole trees, each leaf with its own parameters, by path."""
        stepped: Flat = {}
        for leaf in self.leaves:
            paths = [path for path in leaf.paths if path in gradients]
            new = leaf.optimizer.apply_gradients(
                self.nested({path: gradients[path] for path in paths}),
                self.nested({path: parameters[path] for path in paths}),
            )
            stepped.update(leaves_of(new))
        return stepped

    def nested(self, leaves: Mapping[KeyPath, Tree]) -> Tree:
        """Return leaves in the structure of the tree that was assigned."""
        return nested(leaves, self.structure)

    @property
    def is_initialized(self) -> bool:
        """Whether no user has put in another state since `init`."""
        return all(leaf.is_initialized for leaf in self.leaves)

    @property
    def is_elementwise(self) -> bool:
        return all(leaf.is_elementwise for leaf in self.leaves)

    def strategy(self, shard: bool | str) -> Strategy:
        """Return the strategy that a `shard=` stands for.

        Raises:
            ValueError: on another value, and on "elements" for an optimizer that needs
                whole tensors.
        """
        if shard is False:
            return "replicated"
        if shard is True:
            return "elements" if self.is_elementwise else "tensors"
        if shard == "tensors":
            return "tensors"
        if shard != "elements":
            raise ValueError(
                f'shard is {shard!r}; it must be False, True, "elements" or "tensors"'
            )
        names = [
            type(leaf.optimizer).__name__
            for leaf in self.leaves
            if not leaf.is_elementwise
        ]
        if names:
            raise ValueError(
                f'shard="elements" cuts tensors into slices, and {", ".join(names)} '
                'may need them whole; use shard="tensors" or shard=True. If the class '
                "updates each element by itself, declare it with a class attribute: "
                "elementwise = True"
            )
        return "elements"

    def costs(self, entries: Sequence[Entry]) -> dict[KeyPath, float]:
        """Each tensor's share of all work plus its share of all bytes.

        Whole tensors are dealt out so that both even out over the ranks.
        """
        works = {e.path: self.owner(e.path).work(e) for e in entries}
        all_work = sum(works.values()) or 1.0
        all_bytes = sum(entry.nbytes for entry in entries) or 1
        return {
            e.path: works[e.path] / all_work + e.nbytes / all_bytes for e in entries
        }

    def settings(self) -> list[str]:
        """Classes and hyperparameters as text, to be compared across ranks."""
        return [
            f"{self._prefix(leaf)}{line}"
            for leaf in self.leaves
            for line in leaf.settings()
        ]

    def _prefix(self, leaf: Leaf) -> str:
        if len(self.leaves) == 1:
            return ""
        indices = leaf.at.split(".")[1::2]  # of "states.0.states.1."
        return ".".join(f"optimizers[{index}]" for index in indices) + ": "

    def scalars(self) -> list[Array]:
        """Step, learning rate and the like, of all leaves."""
        return [array for leaf in self.leaves for array in leaf.scalars().values()]

    def restore_scalars(self, values: Sequence[Named]) -> None:
        """Put back what `Leaf.scalars` of all leaves returned."""
        for leaf, scalars in zip(self.leaves, values, strict=True):
            state = leaf.optimizer.state
            state.update({k: like(state.get(k), v) for k, v in scalars.items()})

    def scalar_lines(self) -> list[str]:
        """Step, learning rate and the like as text. Waits for their values.

        Without numbers that are no arrays: an optimizer may count in them what a rank
        does for its own shard.
        """
        return [
            f"{name} {value.item()!r}"
            for leaf in self.leaves
            for name, value in leaf.scalars().items()
            if value.size == 1 and isinstance(leaf.optimizer.state[name], mx.array)
        ]


def _leaves(
    optimizer: Optimizer, at: str, filters: tuple[Filter, ...]
) -> Iterator[Leaf]:
    """Each leaf with its filters: one of each MultiOptimizer around it."""
    if not isinstance(optimizer, optim.MultiOptimizer):
        yield Leaf(optimizer, at, filters)
        return
    for index, inner in enumerate(optimizer.optimizers):
        wants = optimizer.filters[index]
        yield from _leaves(inner, f"{at}states.{index}.", (*filters, wants))


def _takes(leaf: Leaf, path: KeyPath, array: Array) -> bool:
    name = path.dotted  # as MLX calls filters
    return all(wants(name, array) for wants in leaf.filters)
