"""A micro-batch that is averaged over the ranks, before the last one of its step."""

from __future__ import annotations

from contextlib import suppress

from ..comm.reduction import Weights
from ..comm.share_sums import ShareSums
from ..comm.wire import Reduction, Wire
from .attempt import error_line
from .local_gradients import LocalGradients
from .resumable_state import StepCounts


def add_share(
    wire: Wire,
    gradients: LocalGradients,
    weights: Weights,
    shares: ShareSums,
    counts: StepCounts,
) -> None:
    """Exchange a micro-batch's weighted sums, and add up this rank's share of them.

    An error on one rank does not end its part of the exchange: see `attempt.py`. The
    step begins anew then, and all ranks raise at the next call.
    """
    reduction = wire.reduce(gradients.unsent, weights)
    try:
        for index in range(len(wire.plan.buckets)):
            shares.add(index, reduction.take(index))
    except BaseException as error:
        counts.ended = error_line(counts, error)
        if wire.has_peers:
            counts.broken = f"{counts.ended}, and its exchanges can't be ended: restart"
            with suppress(Exception):  # the first error is the one to report
                _end(wire, reduction, gradients)
                counts.broken = None
        raise


def _end(wire: Wire, reduction: Reduction, gradients: LocalGradients) -> None:
    """Take part in what is left, with zeros for gradients that can't be had."""
    wire.comm.settle()
    reduction.replace_gradients(gradients.use_zeros(wire.plan.entries))
    reduction.collect()
