"""Repeated attempts at what a busy machine can only make slower."""

from collections.abc import Callable

from mlxdist.world import World


def any_of(attempts: int, check: Callable[[], bool]) -> bool:
    """Return whether a check of time holds at the first of some attempts, or later.

    On a busy machine one of them is likely to be undisturbed. Code that is too slow by
    itself fails all of them. In an SPMD test the check has to be equal on all ranks.
    """
    return any(check() for _ in range(attempts))


def agreed(holds: bool, world: World) -> bool:
    """Return whether something holds on all ranks."""
    return all(map(any, world.control.all_gather_bytes(bytes([holds]))))
