"""Random numbers that a user's optimizer draws: each rank has others."""

from __future__ import annotations

import mlx.core as mx

from ..arrays.types import Array
from .local_shard import LocalShard


class RandomDraws:
    """Refuses an update that draws random numbers where state is replicated.

    The ranks' parameters would part. With whole tensors dealt out each has one owner,
    whose numbers count.
    """

    def __init__(self, shard: LocalShard):
        leaves = [leaf for leaf in shard.inner.leaves if not leaf.is_of_mlx]
        is_replicated = shard.wire.has_peers and not shard.wire.plan.sharded
        self._names = [type(leaf.optimizer).__name__ for leaf in leaves]
        self._before = _key() if is_replicated and leaves else None

    def refuse(self) -> None:
        """Raise ValueError where numbers were drawn since this object was made."""
        if self._before is not None and _key() is not self._before:
            raise ValueError(
                f"{' or '.join(self._names)} draws random numbers in its update, and "
                'each rank would draw others: use shard="tensors", where each tensor '
                "has one owner"
            )


def _key() -> Array:
    """MLX's random key: another object once a number was drawn."""
    state: Array = mx.random.state
    return state[0]
