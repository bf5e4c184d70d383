"""What `mlxdist plan` says of a choice: as JSON, as Python, and as sums."""

from __future__ import annotations

import math

from ..layout.buckets import IN_FLIGHT
from ..layout.memory import Term
from ..planner import MOST_IMBALANCE, Choice, Model, Prediction, StepTime
from ..planner.choices import Change
from .number_format import gigabytes

CLASSES = {
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adadelta": "AdaDelta",
    "adam": "Adam",
    "adamw": "AdamW",
    "adamax": "Adamax",
    "lion": "Lion",
    "muon": "Muon",
    "adafactor": "Adafactor",
}

# What each change means for the user.
MEANINGS: dict[Change, str] = {
    "shard": "shard=True: each rank keeps 1/N of the state; the same results",
    "minimize": "optimizer.minimize() instead of update(); the same results",
    "sharded sums": "accumulate_sharded=True: gradients are sent K times a step",
    "24bit": 'master_dtype="24bit": 8 bits more than a parameter, no float32',
    "int8": 'state_dtype="int8": moments are rounded, in blocks of 64',
    "means": "mean_dtype: mean gradients are rounded to 16 bits",
    "unchecked": "check_finite=False: a step with nan or inf is taken",
}


def to_json(prediction: Prediction, available: float | None) -> dict[str, object]:
    """Return the prediction under the keys that `mlxdist plan --json` documents."""
    recommended = prediction.recommended
    return {
        "ranks": prediction.ranks,
        "mode": prediction.best.strategy,
        "fits": recommended is not None,
        "recommended": None if recommended is None else list(recommended.changes),
        "choices": [_choice(choice, available) for choice in prediction.choices],
        "seconds": {
            strategy: {link: _seconds(time) for link, time in times.items()}
            for strategy, times in prediction.step_times.items()
        },
    }


def _choice(choice: Choice, available: float | None) -> dict[str, object]:
    return {
        "changes": list(choice.changes),
        "mode": choice.strategy,
        "fits": choice.fits(available),
        "memory": {term.name: term.nbytes for term in choice.memory.terms},
        "total": choice.memory.total,
        "arguments": arguments(choice),
    }


def _seconds(time: StepTime) -> dict[str, float | None]:
    return {
        "local": time.local,
        "bytes": time.exchange.nbytes,
        "messages": time.exchange.messages,
        "transfer": time.exchange.transfer,
        "latency": time.exchange.waiting,
        "copying": time.exchange.copying,
        "communication": time.communication,
        "overlappable": time.overlappable,
        "overlap": time.overlap,
        "shortest": time.shortest,
        "longest": time.longest,
        "expected": time.expected,
    }


def arguments(choice: Choice) -> list[str]:
    """Return the arguments of DistributedOptimizer, as Python."""
    options = choice.options
    masters = {"float32": "mx.float32", "24bit": '"24bit"', None: None}
    values = {
        "shard": "True" if choice.strategy != "replicated" else None,
        "master_dtype": masters[options.master_dtype],
        "state_dtype": '"int8"' if options.state_dtype else None,
        "mean_dtype": options.mean_dtype and f"mx.{options.mean_dtype}",
        "check_finite": None if options.check_finite else "False",
        "max_norm": "1.0" if options.scales_gradients else None,
        "accumulate": options.accumulate if options.accumulate > 1 else None,
        "accumulate_sharded": "True" if options.accumulate_sharded else None,
        "ema_decay": "0.999" if options.ema else None,
    }
    return [f"{name}={value}" for name, value in values.items() if value is not None]


def python_lines(model: Model, choice: Choice) -> list[str]:
    """Return the lines of Python that make the optimizer and take a step."""
    inner = f"optim.{CLASSES[model.optimizer]}(learning_rate)"
    words = [inner, *arguments(choice)]
    opening = "optimizer = mlxdist.DistributedOptimizer("
    lines = [f"{opening}{', '.join(words)})"]
    if len(lines[0]) > 76:
        lines = [opening, f"    {inner},", *_wrapped(words[1:]), ")"]
    if choice.options.minimize:
        return [*lines, "loss = optimizer.minimize(loss_fn, model, *batch)"]
    return [
        *lines,
        "loss, grads = nn.value_and_grad(model, loss_fn)(model, *batch)",
        "optimizer.update(model, grads)",
    ]


def _wrapped(words: list[str]) -> list[str]:
    """Return arguments on lines of at most 76 characters."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 70:
            lines.append("")
        lines[-1] += f"{word}, "
    return [f"    {line.rstrip()}" for line in lines]


def sum_text(term: Term, model: Model, ranks: int) -> str:
    """Return how the bytes of a term come about, to check them by hand."""
    if term.name == "process":
        return "Python, MLX and MPI, as measured on Linux"
    if term.name == "buckets":
        return _buckets_text(term, model, ranks)
    if term.name == "frozen parameters":
        return "not trained, the same on each rank"
    width = term.whole / model.elements
    text = f"{model.elements:,} x {width:.4g} {'byte' if width == 1 else 'bytes'}"
    if term.nbytes == term.whole:
        return text
    if math.isclose(term.nbytes * ranks, term.whole, rel_tol=0.01):
        return f"{text} / {ranks}"
    return f"{text} x {term.nbytes / term.whole:.3g}, the largest share"


def _buckets_text(term: Term, model: Model, ranks: int) -> str:
    sizes = [bucket.nbytes for bucket in model.plan(ranks, "replicated").buckets]
    largest = f"{gigabytes(max(sizes))}, the largest"
    texts = {
        IN_FLIGHT + max(sizes): f"{gigabytes(IN_FLIGHT)} + {largest}",
        max(sizes): largest,
        2 * max(sizes): f"2 x {largest}",
        sum(sizes): "all of them",
    }
    if term.nbytes in texts:
        return f"in flight: {texts[term.nbytes]}"
    return f"in flight, both ways: {texts[term.nbytes // 2]}"


def caution(choice: Choice) -> str | None:
    """Return what is wrong with a choice's sharding, or None."""
    if choice.imbalance <= MOST_IMBALANCE:
        return None
    return (
        "The owner of the largest tensors sends "
        f"{choice.imbalance:.1f} times as much as with replicated state"
    )
