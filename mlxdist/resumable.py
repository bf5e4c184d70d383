"""What a DistributedOptimizer gives a checkpoint to save, and takes back."""

from __future__ import annotations

from . import state
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
    _plan: Plan | None
    _updates: int

    def _require_plan(self) -> Plan:
        if self._plan is None:
            raise ValueError("call optimizer.init(model) first")
        return self._plan

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
