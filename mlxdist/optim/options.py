"""The options of a `DistributedOptimizer`: read once, then frozen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from ..arrays.types import Dtype
from ..layout.sharding import Strategy
from . import loss_scale
from .buffers import Mode
from .ema import EmaWeights
from .masters import MasterWeights
from .masters import Option as MasterOption
from .quantized_state import QuantizedState
from .weight_copies import WeightCopies

Transport = Literal["auto", "native", "host"]
StateDtype = Literal["int8"] | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a `DistributedOptimizer`: what each does, and what it costs.

    Attributes:
        strategy: "replicated" keeps all state on all ranks. "elements" cuts it into
            equal flat slices, for optimizers that treat each element by itself;
            "tensors" gives each tensor to one rank, for all others. `shard=True`
            chooses between these two.
        transport: "native" is lazy `mx.distributed`, needed inside `mx.compile`, which
            adds in MPI's own order; "host" is MPI on evaluated arrays, which adds in
            rank order. "auto" takes "host" over MPI, outside `mx.compile`, for sharded
            state, and for all where ranks compute while they communicate: on several
            hosts, or on an accelerator; otherwise "native".
        bucket_size: bytes of gradients that are sent together; over ring 32 MiB or
            more.
        reduce_dtype: dtype in which "native" adds. "host" always adds in float32.
        wire_dtype: dtype of gradients on the wire, such as mx.bfloat16; needs
            transport="host", which adds them in float32 all the same.
        mean_dtype: mx.bfloat16 or mx.float16 rounds this rank's share of the means to
            it, once, after they were added in float32 and measured for `max_norm`, so
            that they wait for the last of them in 2/N bytes a parameter and not in 4/N.
            For sharded state over "host". None keeps the bits of the step: float32
            where the optimizer updates in float32, with masters or state in 8 bits;
            means of 16-bit parameters without them are in 16 bits already.
        max_norm: clips the averaged gradient to this global norm; None does not.
            math.inf measures `grad_norm` without clipping. `optim.clip_grad_norm`
            before an update would clip each rank's gradients by the norm of its own.
        skip_nonfinite: skips a step on all ranks where the averaged gradient has a nan
            or inf, and counts it in `skipped`. False raises; that costs the same.
        check_finite: False neither measures nor checks gradients, so that a bucket can
            be stepped before the last one has arrived, and none of the means is kept.
            A nan or inf then goes into the parameters, as with MLX's own optimizers.
            A world of one without an option that needs it doesn't check either.
        check_every: steps between comparisons of the checksums of all parameters, and
            of replicated state, over the ranks; 0 never compares them. With sharded
            state every step broadcasts the parameters again, so corruption between two
            checks may be overwritten or copied to all ranks. 1 catches all of it.
        master_dtype: mx.float32 keeps a float32 master of each 16-bit parameter, with
            float32 state, in this rank's shard: 4 + 12/N bytes a parameter with AdamW,
            its gradient's included. Parameters are sent in their own dtype. "24bit"
            keeps 8 bits more than the parameter has instead: 4 + 9/N bytes. Masters are
            then rounded to 24 bits at random, so that small steps are not lost.
        loss_scale: multiply losses by `optimizer.loss_scale` before taking gradients;
            `update` divides by it. For fp16. "dynamic" begins with 65536, halves it
            where gradients overflow, which skips the step on all ranks, and doubles it
            after 2000 steps without an overflow; a number stays.
        accumulate: micro-batches that make a step. The last of so many updates moves
            the parameters, by the weighted mean over all micro-batches of all ranks;
            the others add up their gradients in float32 (4 bytes a parameter) and send
            nothing.
        accumulate_sharded: each micro-batch's gradients are averaged over the ranks,
            and a rank adds up its share alone: 4/N bytes a parameter instead of 4, and
            `accumulate` times the bytes of gradients on the wire. Needs sharded state.
        ema_decay: keeps an EMA of the parameters in float32, 4/N bytes each.
        sync_buffers: for arrays that are not trained but change, such as BatchNorm's
            running statistics: "mean" averages them over the ranks at each step,
            weighted, "root" takes rank 0's, None leaves each rank its own.
        reproducible: the same bits on any number of ranks, however state is cut and on
            either transport, for the same micro-batches: rank r of N has micro-batches
            r * K to (r + 1) * K - 1 of K * N, where accumulate=K, a power of two. They
            are added in pairs, as pairwise_sum.py does, and the gradient's squares as
            well. Costs: gradients are sent as float32; log2 K + 1 float32 copies of
            them; over "native" (N-1) times their bytes and not 2(N-1)/N; with N > 1 or
            `max_norm` a pass over this rank's gradients in float64, about 2 ns an
            element on one x86 core.
        overlap_forward: sharded state over "host" on up to 8 ranks that compute while
            they communicate: `update` returns before the new parameters have arrived,
            first layers first, and the next forward pass goes on behind them. They are
            lazy arrays: whatever reads one waits for it, and `mx.eval` of the whole
            model waits for all, so evaluate the loss and the optimizer's state alone.
            Another thread can read them once this one has evaluated them. The bytes
            on the wire are the same, but for padding. At the peak of the forward pass
            up to the parameters' bytes more (half of them measured on 2 ranks), and
            fewer at that of `update`. False waits in `update`.
        state_dtype: "int8" keeps the moments of large matrices in 8 bits, in blocks of
            64 with a scale each: with AdamW 2.13 bytes a parameter instead of 8. For
            SGD, RMSprop, Adagrad, AdaDelta, Adam, AdamW, Adamax and Lion; in a
            MultiOptimizer each of its optimizers by itself.
        float32_state: parameters whose dotted path contains one of these texts keep
            their moments as MLX makes them; so do vectors, and tensors of fewer than
            4096 elements or of no multiple of 64.
    """

    strategy: Strategy
    transport: Transport
    bucket_size: int
    reduce_dtype: Dtype
    wire_dtype: Dtype
    mean_dtype: Dtype
    max_norm: float | None
    skip_nonfinite: bool
    check_finite: bool
    check_every: int
    master_dtype: MasterOption
    loss_scale: loss_scale.Option
    accumulate: int
    accumulate_sharded: bool
    ema_decay: float | None
    sync_buffers: Mode | None
    reproducible: bool
    overlap_forward: bool
    state_dtype: StateDtype
    float32_state: tuple[str, ...]

    @classmethod
    def among(cls, arguments: Mapping[str, Any], strategy: Strategy) -> Options:
        """Return those among the arguments of a function that has all of them."""
        names = cls.__dataclass_fields__.keys() - {"strategy"}
        return cls(strategy=strategy, **{name: arguments[name] for name in names})

    def __post_init__(self) -> None:
        """Take numbers of NumPy as those of Python, which the checks ask for."""
        for name, value in list(vars(self).items()):
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())

    @property
    def copies(self) -> WeightCopies:
        return WeightCopies(
            MasterWeights(self.master_dtype), EmaWeights(self.ema_decay)
        )

    @property
    def quantized(self) -> QuantizedState:
        return QuantizedState(self.state_dtype, self.float32_state)

    @property
    def is_sharded(self) -> bool:
        """Whether the state is cut."""
        return self.strategy != "replicated"

    @property
    def scales_gradients(self) -> bool:
        """Whether a step multiplies gradients, to clip or to unscale them."""
        return self.max_norm is not None or self.loss_scale is not None

    @property
    def needs_norm(self) -> bool:
        """Whether a step can't do without the norm, or that it is finite."""
        dynamic = self.loss_scale == "dynamic"
        return self.max_norm is not None or self.skip_nonfinite or dynamic

    @property
    def rounded_mean(self) -> Dtype:
        """The dtype to which "host" rounds means; None for the parameters' own.

        That is what the optimizer steps with, unless it updates 16-bit parameters in
        float32. In 16 bits replicated state would see another norm than sharded state.
        """
        steps_in_float32 = self.is_sharded and self.state_dtype is not None
        if self.reproducible or self.accumulate_sharded or steps_in_float32:
            return self.mean_dtype or mx.float32
        return self.mean_dtype or self.copies.masters.dtype

    def lines(self) -> list[str]:
        """The options as text, to be compared across ranks."""
        return [f"{name} = {value}" for name, value in vars(self).items()]


def refuse_assignment(
    name: str, attributes: Collection[str], *, is_of_wrapped: bool
) -> None:
    """Raise AttributeError on the name of an option, which is read once.

    Args:
        attributes: those that the optimizer has already.
        is_of_wrapped: whether the wrapped optimizer has an attribute of this name.
    """
    is_option = name in (*Options.__dataclass_fields__, "shard")
    if is_option or (name == "options" and name in attributes):
        raise AttributeError(
            f"{name} can't be changed: a DistributedOptimizer reads its options once, "
            f"on all ranks. Wrap the optimizer again with {name}=..."
            + f", or set optimizer.optimizer.{name}, its own"
            * is_of_wrapped
        )
