"""A warning where all ranks have the same gradients, so that they train as one rank."""

from __future__ import annotations

import zlib
from functools import partial

import mlx.core as mx
import numpy as np

from ..arrays.numpy_view import raw
from ..arrays.types import Flat
from ..comm.agreement import agree_on_success
from ..comm.reduction import Weights
from ..world.world import World
from .user_warning import warn_user

_CALL = "evaluation of the first gradients"
_SAMPLE = 4096  # bytes of each gradient that are compared first


def warn_if_identical(
    world: World, gradients: Flat, weights: Weights, *, weighted: bool
) -> bool:
    """Warn on rank 0 if the gradients of all ranks with a weight have the same bits.

    Called by all ranks: it evaluates the gradients. Sends 40 bytes a rank, and 8
    more where the first bytes of all gradients are the same.

    Args:
        weighted: whether the user gave a weight.

    Returns:
        Whether there was something to compare: two ranks with a weight, and gradients
        that are not all 0.

    Raises:
        MismatchError: on all ranks, where one of them can't evaluate its gradients.
    """
    assert weights.every is not None
    ranks = [rank for rank, weight in enumerate(weights.every) if weight]
    if len(ranks) < 2:
        return False
    agree_on_success(world.control, _CALL, partial(mx.eval, gradients))
    for size in (_SAMPLE, None):
        words = np.array([_checksum(gradients, size)], np.uint64)
        every = world.control.all_gather_words(words)[ranks, 0]
        if (every != every[0]).any():
            return True
    is_nonzero = bool(every[0] >> np.uint64(32))
    if world.is_root and is_nonzero:
        warn_user(_text(len(ranks), weighted=weighted))
    return is_nonzero


def _checksum(gradients: Flat, size: int | None) -> int:
    """The crc32 of the first bytes of all gradients; 2^32 is added if one is not 0."""
    checksum, is_nonzero = 0, False
    for path in sorted(gradients):
        part = raw(gradients[path]).reshape(-1).view(np.uint8)[:size]
        checksum = zlib.crc32(part.data, checksum)
        is_nonzero = is_nonzero or bool(part.any())
    return checksum + (is_nonzero << 32)


def _text(ranks: int, *, weighted: bool) -> str:
    text = (
        f"the gradients of all {ranks} ranks are the same at the first update, so that "
        f"{ranks} ranks do the work of one. Either they were averaged before: update() "
        "does that, so leave out nn.average_gradients and all_sum. Or all ranks have "
        "the same batch: give each rank its share of the data (mlxdist.ShardedSampler, "
        "or world.rank and world.size), and random numbers of its own (world.seed)."
    )
    return text + " weight= has no effect on equal gradients." * weighted
