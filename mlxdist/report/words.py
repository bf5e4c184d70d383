"""Sentences on a breakdown, for the terminal and for the page."""

from __future__ import annotations

from .breakdown import Breakdown, Straggler

MEANINGS = {
    "computing": "your own code, and gradients that update() evaluates",
    "updating": "the optimizer's update of this rank's shard",
    "wire": "messages on their way, while no rank is late",
    "waiting": "for a rank that is late",
    "other": "before the first step, checkpoints and other calls",
}


def duration(seconds: float) -> str:
    """Return a duration with its unit, with three digits."""
    if seconds >= 120:
        return f"{seconds / 60:,.1f} min"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return (
                f"{seconds / size:.3g} {unit}"
                if seconds < 100 * size
                else (f"{seconds / size:,.0f} {unit}")
            )
    return f"{seconds * 1e6:.3g} µs"


def share(part: float, whole: float) -> str:
    """Return a part in percent."""
    return f"{100 * part / whole:.1f}%" if whole > 0 else "0.0%"


def sentences(breakdown: Breakdown) -> list[str]:
    """Return what the parts don't say: the straggler, and what is not known."""
    result = [_steps(breakdown)]
    if breakdown.lost:
        result.append(_lost(breakdown))
    elif len(breakdown.ranks) > 1:
        result.append(_straggler(breakdown.straggler, breakdown.steps))
    if len(breakdown.ranks) > 1:
        result.append(_clocks(breakdown))
    overlapped = max(rank.overlapped for rank in breakdown.ranks)
    if overlapped:
        result.append(
            "Collectives proceeded while a rank did not wait, for up to "
            f"{duration(overlapped)}; that cost no time, and is in no part."
        )
    if breakdown.starts_only:
        result.append(
            f"The start alone is known of {breakdown.starts_only:,} of the "
            "collectives: MLX runs them (native transport, or parameters that arrive "
            "behind the next forward pass), or the job ended during them. What MLX "
            "waits for inside its evaluation counts as computing. A step inside "
            "mx.compile is recorded once, when it is traced."
        )
    cut = [str(rank.rank) for rank in breakdown.ranks if not rank.is_complete]
    if cut:
        result.append(
            "The trace lacks the beginning or the end of these ranks: "
            f"{', '.join(cut)}. A job that fails or is ended writes the last 2,000 "
            "events of each rank; one that finishes has the last 200,000."
        )
    return result


def _steps(breakdown: Breakdown) -> str:
    count = breakdown.steps
    text = f"{count:,} step{'s' * (count != 1)} of an optimizer"
    if breakdown.step_time is not None:
        text += f", one every {duration(breakdown.step_time)}"
    return f"{text}."


def _straggler(straggler: Straggler | None, steps: int) -> str:
    if straggler is None or not straggler.is_noticeable:
        return "No rank keeps the others waiting for 1% of the time."
    return (
        f"Rank {straggler.rank} on {straggler.host} is waited for longest: each other "
        f"rank waits {duration(straggler.per_step)} a step for it, on average. In "
        f"{straggler.steps:,} of {steps:,} steps it is the one waited for most."
    )


def _lost(breakdown: Breakdown) -> str:
    known = ", ".join(str(rank.rank) for rank in breakdown.ranks)
    size = len(breakdown.ranks) + breakdown.lost
    return (
        f"Of {size:,} ranks only these are in the trace: {known}. A rank that is "
        "killed writes nothing, and in a job that fails or is ended each host has a "
        "file of its own. Waiting for such a rank counts as wire, so that the rank "
        "waited for longest is not known."
    )


def _clocks(breakdown: Breakdown) -> str:
    if not breakdown.clock_error:
        return "All ranks read one clock."
    return f"Clocks are aligned within {duration(breakdown.clock_error)}."
