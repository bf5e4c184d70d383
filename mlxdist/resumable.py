"""What a DistributedOptimizer gives a checkpoint to save, and takes back."""

from __future__ import annotations

from typing import Any

from . import prepare, state
from .agreement import agree
from .delegate import Delegate
from .sharding import Plan
from .state import StateTree
from .world import World


class Resumable(Delegate):
    """An optimizer whose state can be saved, and resumed on any number of ranks.

    A checkpoint knows nothing of what it saves but this: kinds of arrays by parameter
    path, cut over the ranks as the plan says. A new kind needs a line in `_saved` and
    one in `_restore`.
    """

    world: World
    skipped: int
    _name: str
    _plan: Plan | None
    _updates: int

    def _require_plan(self) -> Plan:
        if self._plan is None:
            raise ValueError("call optimizer.init(model) first")
        return self._plan

    def gather_state(self) -> dict[str, Any]:
        """The full state in MLX's own layout, on every rank.

        What the wrapped optimizer would hold in one process: it may be saved, given to
        one, or loaded with `load_state` on any number of ranks. Called by all ranks;
        sends each rank's own state to all others.
        """
        plan, comm = self._require_plan(), self.world.control
        name = f"{self._name}.gather_state"
        with self.world.recorder.call(name, self._updates):
            agree(comm, name, plan.fingerprint, list)
            own = state.read(self._inner, plan.shard(comm.rank))
            return state.as_mlx(self._inner, state.gather(own, plan, comm))

    def load_state(self, full: dict[str, Any]) -> None:
        """Takes a full state, the same on all ranks, and keeps what this rank owns.

        Raises:
            MismatchError: on all ranks, and nothing is loaded, where it lacks a
                parameter or its shapes or dtypes are others.
        """
        comm, plan = self.world.control, self._require_plan()
        prepare.load(comm, f"{self._name}.load_state", self._inner, plan, full)

    def _saved(self) -> dict[str, StateTree]:
        """What this rank holds: `{kind: {path: {key: array}}}`, live arrays."""
        shard = self._require_plan().shard(self.world.rank)
        return {"optimizer": state.read(self._inner, shard)}

    def _restore(self, saved: dict[str, StateTree]) -> None:
        """Takes back some of what `_saved` gave: any kinds, any paths."""
        state.write(self._inner, saved.get("optimizer", {}))

    def _counters(self) -> dict[str, int]:
        """Numbers of its own, the same on all ranks."""
        return {"updates": self._updates, "skipped": self.skipped}

    def _restore_counters(self, counters: dict[str, int]) -> None:
        self._updates = counters.get("updates", 0)
        self.skipped = counters.get("skipped", 0)
