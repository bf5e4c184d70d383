"""The memory that Metal keeps resident for MLX.

MLX's buffers are not resident between command buffers unless a limit allows it, and
macOS compresses or swaps them under pressure. Public reports: 14% more tokens per
second with a limit (MLX PR #2006), and Macs that froze or crashed where it was all of
Metal's recommendation (vmlx-swift #421, mlx-lm #883). Nothing here was run on a Mac.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import mlx.core as mx

from ..arrays import device
from ..launcher import environment

_SHARE_OF_RECOMMENDED = 0.9
_LEAST_LEFT = 8 * 2**30  # bytes for everything but MLX, and of all memory
_SHARE_LEFT = 0.35


class Metal(Protocol):
    """The functions of `mlx.core` by which a process limits its resident memory."""

    def device_info(self) -> Mapping[str, str | int]: ...
    def set_wired_limit(self, limit: int) -> int: ...


def wired_limit(memory: int, recommended: int, ranks: int) -> int:
    """Return how many bytes a rank may keep resident; 0 where a Mac has none to spare.

    Args:
        memory: bytes of the Mac.
        recommended: Metal's largest working set, in bytes.
        ranks: of the job, on this Mac.
    """
    left = max(_LEAST_LEFT, _SHARE_LEFT * memory)
    limit = min(_SHARE_OF_RECOMMENDED * recommended, memory - left)
    return int(max(0.0, limit)) // ranks


def wire(metal: Metal, ranks: int) -> int:
    """Set the limit of this process, and return it; leave one that the user has set.

    macOS before 15 takes no notice of it.

    Args:
        ranks: of the job, on this Mac.
    """
    info = metal.device_info()
    memory, recommended = info["memory_size"], info["max_recommended_working_set_size"]
    limit = wired_limit(int(memory), int(recommended), ranks)
    former = metal.set_wired_limit(limit)
    if former:
        metal.set_wired_limit(former)
    return former or limit


def wire_where_metal_computes(
    metal: Metal = mx, *, on_metal: bool | None = None
) -> None:
    """Call `wire` if MLX computes on Metal; MLXDIST_WIRED=0 disables that.

    Args:
        on_metal: whether it does; None asks MLX.
    """
    if on_metal is None:
        on_metal = mx.metal.is_available() and not device.on_cpu()
    if on_metal and environment.is_enabled(environment.WIRED):
        wire(metal, environment.local_size())
