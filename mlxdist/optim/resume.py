"""What a DistributedOptimizer gives a checkpoint to save, and takes back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..arrays.types import Flat
from ..comm.agreement import agree
from ..layout.sharding import Plan
from ..world.world import World
from . import midway, state
from . import setup as prepare
from .accumulation import Accumulation
from .delegate import Delegate
from .loss_scale import LossScale
from .masters import Beside
from .state import StateTree


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
    _beside: Beside
    _accumulation: Accumulation
    _loss_scale: LossScale | None
    _midway: Flat

    def _require_plan(self) -> Plan:
        if self._plan is None:
            raise ValueError("call optimizer.init(model) first")
        return self._plan

    def gather_state(self) -> dict[str, Any]:
        """The full state in MLX's own layout, on every rank.

        What the wrapped optimizer would hold in one process: it may be saved, given to
        one, or loaded with `load_state` on any number of ranks. Masters and averages
        stand in it as "master" and "average", which MLX leaves alone. Called by all;
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
        call = f"{self._name}.load_state"
        prepare.load(comm, call, self._inner, plan, self._beside, full)

    def _saved(self) -> dict[str, StateTree]:
        """What this rank holds: `{kind: {path: {key: array}}}`, live arrays.

        Masters and averages are part of the optimizer's state. In the middle of a
        step's micro-batches their sums over all ranks are worked out here; that takes
        all ranks, and sends each one's sums to all others.
        """
        shard = self._require_plan().shard(self.world.rank)
        saved = {"optimizer": state.read(self._inner, shard)}
        if self._accumulation.count:
            saved["accumulated"] = midway.shard_of_sums(self)
        return saved

    def _wanted(self, kinds: Collection[str]) -> dict[str, StateTree]:
        """Arrays like those that this rank wants of a checkpoint with some kinds."""
        plan = self._require_plan()
        shard = plan.shard(self.world.rank)
        wanted = {"optimizer": state.read(self._inner, shard)}
        if "accumulated" in kinds:
            wanted["accumulated"] = midway.like(plan, self.world.rank)
        return wanted

    def _restore(self, saved: dict[str, StateTree]) -> None:
        """Takes back some of what `_saved` gave: any kinds, any paths."""
        state.write(self._inner, saved.get("optimizer", {}))
        for path, arrays in saved.get("accumulated", {}).items():
            self._midway[path] = arrays["sum"]

    def _counters(self) -> dict[str, int]:
        """Numbers of its own, the same on all ranks."""
        counters = {"updates": self._updates, "skipped": self.skipped}
        if self._loss_scale is not None:
            counters |= self._loss_scale.counters()
        if self._accumulation.count:
            counters |= midway.counters(self)
        return counters

    def _restore_counters(self, counters: dict[str, int]) -> None:
        """Called after `_restore`."""
        self._updates = counters.get("updates", 0)
        self.skipped = counters.get("skipped", 0)
        if self._loss_scale is not None:
            self._loss_scale.restore(counters)
        self._accumulation.drop()
        if counters.get("accumulated", 0):
            midway.resume(self, counters, self._midway)
        self._midway = {}
