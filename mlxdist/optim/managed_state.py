"""The state of a `DistributedOptimizer`: made, assigned, gathered and loaded.

A user assigns to `optimizer.state` on each rank alone. All ranks take or refuse that
state together, at the next call that all of them make. Until then the state from before
stays in memory, and a refusal puts it back.
"""

from __future__ import annotations

from functools import partial

from mlx.nn import Module

from ..arrays.types import Tree
from ..comm.agreement import agree, result_or_problem
from ..layout.entries import fingerprint
from ..world.world import World
from . import setup, state, traced_setup
from .assigned_state import find_assigned, take_assigned
from .full_state import gather_full_state, load_full_state
from .inner_optimizer import InnerOptimizer
from .inner_snapshot import InnerSnapshot
from .options import Options
from .setup import Initialized
from .shard_mark import put_mark
from .state import StateTree
from .state_setup import fit_into
from .state_values import as_state

NEW = "optimizer"  # the name of one that is not initialized


class ManagedState:
    """The state of one optimizer on this rank.

    Attributes:
        name: of the optimizer, for errors: its number among those that all ranks have
            initialized, its class and the model's. A rank may make more of them than
            the others do.
        layout: of the state that `initialize` made; empty before.
    """

    def __init__(self, world: World, inner: InnerOptimizer, options: Options):
        self._world, self.name = world, NEW
        self._inner, self._options = inner, options
        self._comm = world.control
        # Nothing is cut, compared or converted: MLX's own optimizer takes its state.
        is_alone = world.size == 1 and not options.is_sharded
        self._is_mlx = is_alone and options.state_dtype is None
        self._before: InnerSnapshot | None = None
        self.layout = setup.empty_layout(world, options)

    def initialize(self, parameters: Tree, problem: str | None) -> Initialized:
        """Make the state of a model's parameters. Called by all ranks.

        Args:
            problem: why this rank can't do it, or None.
        """
        if problem is None:
            self.settle("init")
        count, name = self._world.optimizer_count, self.name
        if name == NEW:
            count += 1
            name = f"{NEW} {count} ({_class_names(self._inner, parameters)})"
        traced: bool | None = False
        if problem is None:
            is_traced = partial(traced_setup.is_traced, self._inner)
            traced, problem = result_or_problem(is_traced, parameters)
        initialize = traced_setup.initialize if traced else setup.initialize
        try:
            made = initialize(
                self._world,
                name,
                self._inner,
                self._options,
                parameters,
                self.layout,
                problem,
            )
        except BaseException:
            self._put_back()
            raise
        self._world.optimizer_count, self.name = count, name
        self._before, self.layout = None, made.layout
        return made

    def gather(self, step: int) -> Tree:
        """Return the full state in MLX's layout, on every rank."""
        self.settle("gather_state")
        call = f"{self.name}.gather_state"
        with self._world.recorder.call(call, step):
            return gather_full_state(self._comm, call, self._inner, self.layout)

    def read(self, call: str) -> StateTree:
        """Return this rank's state by path, for a call that all ranks make."""
        self.settle(call)
        return state.read(self._inner, self.layout.shard)

    def load(self, full: Tree) -> None:
        """Keep this rank's shard of a full state, instead of one that was assigned."""
        self._put_back()
        load_full_state(
            self._comm,
            f"{self.name}.load_state",
            self._inner,
            self.layout,
            full,
            any_dtype=not self._options.copies.none,
        )

    def assign(self, value: Tree) -> None:
        """Assign a state. ValueError before `init`, where it is no dict as MLX's is.

        After it, one may stand there for a while, such as [] to free a state on disk.
        The tree itself stays the user's: a rank keeps its shard in a copy of it.
        """
        if not self.layout.plan.entries and not isinstance(value, dict):
            raise ValueError(_no_dict_text(value))
        before = self._before
        if not self._is_mlx:
            before = before or InnerSnapshot.of(self._inner)
            value = as_state(value)
        self._inner.optimizer.state = value
        self._before = before

    @property
    def is_pending(self) -> bool:
        """Whether a state was assigned after `init` and is not taken yet."""
        is_planned = bool(self.layout.plan.entries)
        return is_planned and not self._is_mlx and not self._inner.is_initialized

    def settle(self, call: str) -> None:
        """Take the state that was assigned after `init`. Called by all ranks.

        Raises:
            MismatchError: on all ranks, where it is neither a full state, the same on
                all of them, nor each rank's own shard. The one from before is back.
        """
        if not self.is_pending:
            return
        comm, inner, layout = self._comm, self._inner, self.layout
        states = [leaf.optimizer.state for leaf in inner.leaves]
        others = [_no_dict_text(s) for s in states if not isinstance(s, dict)]
        if not others and traced_setup.is_traced(inner, {}):
            traced_setup.settle(inner, layout)
            self._before = None
            return
        call = f"{self.name}.{call} with an assigned state"
        try:
            agree(comm, call, problem=others[0] if others else None)
            assigned = find_assigned(comm, inner, layout.plan.by_path)
            tree = take_assigned(comm, call, inner, layout, assigned, root_wins=False)
            scalars = state.scalars_of(inner)
            lines = inner.scalar_lines()
            agree(comm, call, fingerprint(lines), lambda: lines)
        finally:
            had_before = self._before is not None
            self._put_back()
        if had_before:
            fit_into(inner, tree)
            state.write_scalars(inner, scalars)
        else:
            state.replace(inner, tree)
        put_mark(inner, layout)

    def prepare(self, action: str) -> None:
        """Prepare to "save" or to "load" a checkpoint, which replaces what is pending.

        ValueError where a state is to be saved that was assigned and is not taken yet.
        """
        if action == "load":
            self._put_back()
        elif self.is_pending:
            raise ValueError(
                "a state was assigned to optimizer.state and is not taken yet: call "
                "update or init(model) first"
            )

    def _put_back(self) -> None:
        """Return to the state from before, if there is one."""
        if self._before is not None:
            self._before.restore(self._inner)
        self._before = None


def _no_dict_text(value: object) -> str:
    return f"optimizer.state is set to a {type(value).__name__}; it must be a dict"


def _class_names(inner: InnerOptimizer, parameters: Tree) -> str:
    """Return "Adam of Generator", or "Adam" where the parameters are a plain tree."""
    of_model = f" of {type(parameters).__name__}" * isinstance(parameters, Module)
    return type(inner.optimizer).__name__ + of_model
