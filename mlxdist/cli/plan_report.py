"""The predictions of `mlxdist plan` as JSON, and the reason for a choice as text."""

from __future__ import annotations

from dataclasses import asdict

from ..planner import MOST_IMBALANCE, Choice, Prediction, StepTime
from .number_format import gigabytes


def to_json(prediction: Prediction) -> dict[str, object]:
    """Return the prediction under the keys that `mlxdist plan --json` documents."""
    return {
        "ranks": prediction.ranks,
        "mode": prediction.choice.strategy,
        "why": reason(prediction.choice),
        "fits": prediction.choice.fits,
        "memory": {
            strategy: {**asdict(memory), "total": memory.total}
            for strategy, memory in prediction.memory.items()
        },
        "seconds": {
            strategy: {link: _seconds(time) for link, time in times.items()}
            for strategy, times in prediction.step_times.items()
        },
    }


def _seconds(time: StepTime) -> dict[str, float | None]:
    return {
        "local": time.local,
        "wire": time.communication,
        "hidden": time.overlappable,
        "hides": time.overlap,
        "shortest": time.shortest,
        "longest": time.longest,
        "expected": time.expected,
    }


def reason(choice: Choice) -> str:
    """Return a clause that gives the reason for the choice, with its figures."""
    if choice.reason == "one rank":
        return "with one rank there is nothing to shard"
    available = gigabytes(choice.available or 0.0)
    if choice.reason == "too large":
        return (
            f"nothing fits: it needs {gigabytes(choice.sharded)} of {available} per "
            "rank. Use a narrower dtype or an optimizer with less state: parameters "
            "and gradients are whole on each rank"
        )
    saved = (
        f"saves {gigabytes(choice.replicated - choice.sharded)} of "
        f"{gigabytes(choice.replicated)} per rank"
    )
    if choice.reason == "saves little":
        return f"sharding only {saved}, and replicated state works in mx.compile"
    sends = "sends no more, and each rank updates only its shard"
    if choice.imbalance > MOST_IMBALANCE:
        sends = (
            "but the owner of the largest tensors sends "
            f"{choice.imbalance:.1f} times as much as without"
        )
    if choice.reason == "needed":
        return f"{saved}, which has {available}; {sends}"
    return f"{'sharding ' * (choice.reason == 'unbalanced')}{saved}, {sends}"
