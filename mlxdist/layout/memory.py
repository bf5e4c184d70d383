"""Memory of a rank: bytes of what an optimizer keeps, and of what a step adds.

Pure integers, from a plan and from the options that change them. An optimizer describes
itself with the same rules by which `mlxdist plan` predicts one that does not exist yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import Literal, NamedTuple

from .buckets import IN_FLIGHT, IN_FLIGHT_IN_TURN
from .entries import ITEM_SIZES, Entry
from .sharding import Plan
from .state_blocks import BLOCK, is_quantized

StateDtype = Literal["int8"]
MasterDtype = Literal["float32", "24bit"]
MeanDtype = Literal["float32", "bfloat16", "float16"]

# Arrays of a parameter's size that each MLX optimizer keeps. Adafactor keeps factored
# second moments instead: a row and a column of each matrix.
STATE_COPIES = {
    "sgd": 1,  # MLX allocates the velocity even without momentum
    "rmsprop": 1,
    "adagrad": 1,
    "adadelta": 2,
    "adam": 2,
    "adamw": 2,
    "adamax": 2,
    "lion": 1,
    "muon": 1,
    "adafactor": 0,
}
ELEMENTWISE = frozenset(STATE_COPIES) - {"muon", "adafactor"}

# Resident memory of a rank that trained ten tiny tensors: Python, MLX and Open MPI, as
# `mlxdist bench memory` measured it on Linux x86-64.
PROCESS_BYTES = 64_000_000

_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class MemoryOptions:
    """What changes the memory of a rank, besides the plan.

    Attributes:
        minimize: whether steps are taken by `minimize`, which frees each gradient once
            it is sent, and not by `update`, whose caller holds all of them.
        check_finite: whether a step on several ranks waits until all mean gradients are
            known to be finite. Without it each bucket is stepped as its mean arrives.
        needs_norm: whether a step waits for their norm, on one rank too.
        scales_gradients: whether means are clipped or unscaled before they are used.
        state_dtype: None for the dtype in which the parameter is updated.
        float32_state: see `state_blocks.is_quantized`.
        master_dtype: of the master weights of 16-bit parameters; "24bit" adds 8 bits to
            the parameter. None for no masters.
        mean_dtype: what means of sharded gradients are rounded to; None for the dtype
            that the optimizer steps with.
        rounds_means: whether the transport rounds them. "host" does, "native" does not.
        accumulate: micro-batches of a step.
        accumulate_sharded: whether each rank keeps only its share of their sums.
        pairwise: whether they are added in pairs, which takes several sums at a time.
        ema: whether there are EMA weights.
        overlaps: whether ranks compute while they communicate, as on several hosts.
    """

    minimize: bool = False
    check_finite: bool = True
    needs_norm: bool = False
    scales_gradients: bool = False
    state_dtype: StateDtype | None = None
    float32_state: tuple[str, ...] = ()
    master_dtype: MasterDtype | None = None
    mean_dtype: MeanDtype | None = None
    rounds_means: bool = True
    accumulate: int = 1
    accumulate_sharded: bool = False
    pairwise: bool = False
    ema: bool = False
    overlaps: bool = True

    @property
    def sums(self) -> int:
        """Sums of gradients that exist at a time, in float32."""
        if self.pairwise:
            return self.accumulate.bit_length()  # log2 K + 1
        return int(self.accumulate > 1)

    def keeps_means(self, plan: Plan) -> bool:
        """Whether a step waits for all mean gradients before it uses the first.

        Ranks that compute and communicate in turn check float32 gradients before they
        send them, where they have them all.
        """
        has_all = not (self.minimize or self.overlaps or self.pairwise)
        is_float32 = all(entry.dtype == "float32" for entry in plan.entries)
        waits = self.check_finite and plan.ranks > 1 and not (has_all and is_float32)
        return self.needs_norm or waits


class Term(NamedTuple):
    """A term of the sum of a rank's memory.

    Attributes:
        name: what it is, such as "state".
        nbytes: on this rank.
        whole: of all ranks' shares together; `nbytes` if every rank has all of it.
    """

    name: str
    nbytes: int
    whole: int


@dataclass(frozen=True)
class Memory:
    """The memory of a rank as a sum of terms. Those of 0 bytes are left out."""

    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        return sum(term.nbytes for term in self.terms)

    def __getitem__(self, name: str) -> int:
        """Return the bytes of a term by its name; 0 if there is no such term."""
        return sum(term.nbytes for term in self.terms if term.name == name)


StateBytes = Callable[[Entry, int], int]  # of n elements of a parameter


def state_bytes(entry: Entry, elements: int, kind: str, options: MemoryOptions) -> int:
    """Return the bytes of optimizer state of some elements of a parameter.

    Args:
        elements: all of them, or those of a slice.
        kind: a key of STATE_COPIES.
    """
    width = _update_bytes(entry, options)
    if kind == "adafactor":
        if len(entry.shape) < 2:
            return elements * width
        rows = math.prod(entry.shape[:-1])
        columns = math.prod((*entry.shape[:-2], entry.shape[-1]))
        return (rows + columns) * width if elements else 0
    if options.state_dtype and is_quantized(entry, options.float32_state):
        width_of_block = BLOCK + _FLOAT32  # codes and a scale
        return STATE_COPIES[kind] * elements // BLOCK * width_of_block
    return STATE_COPIES[kind] * elements * width


def master_bytes(entry: Entry, elements: int, options: MemoryOptions) -> int:
    """Return the bytes of master weights of some elements of a parameter."""
    if not _has_master(entry, options):
        return 0
    return elements * (_FLOAT32 if options.master_dtype == "float32" else 1)


def rank_memory(
    plan: Plan,
    rank: int,
    options: MemoryOptions,
    state: StateBytes,
    *,
    frozen: int = 0,
    process: int = 0,
) -> Memory:
    """Return the memory of a rank at the peak of a step, without activations.

    Args:
        state: bytes of state of some elements of a parameter, see `state_bytes`.
        frozen: bytes of parameters that are not trained.
        process: bytes of the bare process.
    """
    entries = plan.by_path
    shard = [
        (entries[path], stop - start)
        for path, (start, stop) in plan.shard(rank).items()
    ]
    whole = [(entry, entry.size) for entry in plan.entries]

    def shared(name: str, nbytes: Callable[[Entry, int], int]) -> Term:
        """A term of which this rank has the shard's part."""
        return Term(name, sum(starmap(nbytes, shard)), sum(starmap(nbytes, whole)))

    def kept(name: str, nbytes: int) -> Term:
        """A term that every rank has."""
        return Term(name, nbytes, nbytes)

    parameters = sum(entry.nbytes for entry in plan.entries)
    terms = [
        kept("parameters", parameters),
        kept("frozen parameters", frozen),
        *_gradient_terms(parameters, plan, options, shared, kept),
        shared("state", state),
        shared("master weights", lambda e, n: master_bytes(e, n, options)),
        shared("EMA weights", lambda e, n: n * max(_FLOAT32, _item(e)) * options.ema),
        kept("buckets", _bucket_bytes(plan, options)),
        kept("process", process),
    ]
    return Memory(tuple(term for term in terms if term.nbytes))


def largest_memory(
    plan: Plan,
    options: MemoryOptions,
    state: StateBytes,
    *,
    frozen: int = 0,
    process: int = 0,
) -> Memory:
    """Return the memory of the rank that needs most; see `rank_memory`."""
    ranks = range(plan.ranks) if plan.sharded else range(1)
    every = (
        rank_memory(plan, rank, options, state, frozen=frozen, process=process)
        for rank in ranks
    )
    return max(every, key=lambda memory: memory.total)


def _gradient_terms(
    parameters: int,
    plan: Plan,
    options: MemoryOptions,
    shared: Callable[[str, StateBytes], Term],
    kept: Callable[[str, int], Term],
) -> Sequence[Term]:
    """Gradients of one backward pass, sums of several, and means over the ranks."""
    terms = []
    if not options.minimize:
        terms.append(kept("gradients", parameters))
    if options.sums:
        if options.accumulate_sharded:
            terms.append(shared("gradient sums", _sum_bytes))
            if plan.ranks > 1:  # of the micro-batch that is added to them
                terms.append(shared("mean gradients", _sum_bytes))
            return terms
        sums = sum(_sum_bytes(entry, entry.size) for entry in plan.entries)
        terms.append(kept("gradient sums", options.sums * sums))
        if options.minimize:  # each sum is freed as its mean arrives
            return terms
    if plan.ranks == 1 and not options.minimize:  # the gradients are the means
        return terms
    if options.keeps_means(plan):
        means = partial(_mean_bytes, plan=plan, options=options)
        terms.append(shared("mean gradients", means))
    return terms


def _mean_bytes(entry: Entry, elements: int, plan: Plan, options: MemoryOptions) -> int:
    """Bytes of a rank's own gradients, or of means, added in float32 and rounded."""
    item = _item(entry)
    if plan.ranks == 1 or item > _FLOAT32:
        return elements * item
    is_wide = options.state_dtype or options.pairwise or options.master_dtype
    if is_wide or not (plan.sharded and options.rounds_means):
        item = _FLOAT32
    return elements * (ITEM_SIZES[options.mean_dtype] if options.mean_dtype else item)


def _item(entry: Entry) -> int:
    return ITEM_SIZES[entry.dtype]


def _sum_bytes(entry: Entry, elements: int) -> int:
    """Bytes of sums of micro-batches: float32, or float64."""
    return elements * max(_FLOAT32, _item(entry))


def _has_master(entry: Entry, options: MemoryOptions) -> bool:
    return options.master_dtype is not None and _item(entry) < _FLOAT32


def _update_bytes(entry: Entry, options: MemoryOptions) -> int:
    """Bytes of an element in the dtype in which the optimizer updates it."""
    return _FLOAT32 if _has_master(entry, options) else _item(entry)


def _bucket_bytes(plan: Plan, options: MemoryOptions) -> int:
    """Buckets in flight: two of them, or IN_FLIGHT and the one that exceeds it.

    Gradients and new parameters, at the same time where buckets are stepped as they
    arrive. A rank alone has those of one bucket; `update` is given the gradients.
    """
    if not plan.buckets:
        return 0
    sizes = [bucket.nbytes for bucket in plan.buckets]
    if plan.ranks == 1:
        is_streamed = options.minimize and not options.keeps_means(plan)
        return (1 + (is_streamed and not options.sums)) * max(sizes)
    most = IN_FLIGHT if options.overlaps else min(IN_FLIGHT, IN_FLIGHT_IN_TURN)
    one_way = min(sum(sizes), max(2 * max(sizes), most + max(sizes)))
    return (1 + (not options.keeps_means(plan) and not options.sums)) * one_way
