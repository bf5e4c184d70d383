"""What a DistributedOptimizer can't do at a time, or not inside `mx.compile`."""

from __future__ import annotations

from typing import Any

_REMEDY = (
    "compile what computes loss and gradients alone, and call update() outside of it"
)


def refuse_here(ours: Any, *, traced: bool) -> None:
    """Raises ValueError without asking other ranks: they are in the same place."""
    refuse_lent(ours, "update")
    if not traced:
        return
    if ours._plan is None:
        raise ValueError("call optimizer.init(model) before mx.compile traces")
    if ours._accumulation.sums_up or ours._accumulation.held or ours._buffers:
        raise ValueError(
            "accumulate, no_sync(), sync_buffers and reproducible=True can't work "
            f"inside mx.compile: {_REMEDY}"
        )


def refuse_lent(ours: Any, what: str) -> None:
    """Raises ValueError while a model has averages in its parameters' places."""
    if ours._lent:
        raise ValueError(
            f"the model has its averages in place: {what} after the `with "
            "optimizer.averaged(model)` block"
        )


def untraceable(ours: Any) -> str | None:
    """What would have to look at numbers inside mx.compile."""
    if ours.skip_nonfinite:
        return "skip_nonfinite=True can't work inside mx.compile; leave it out"
    if ours._loss_scale is not None and ours._loss_scale.dynamic:
        return (
            f'loss_scale="dynamic" can\'t work inside mx.compile: {_REMEDY}, or take '
            "a number for it"
        )
    return None
