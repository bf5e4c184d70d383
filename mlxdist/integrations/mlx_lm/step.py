"""One training step: this rank's loss and tokens, and an update of all ranks' model.

mlx-lm's loss is a mean over the tokens of a batch. The ranks' means are weighted by
their tokens, so that the step is that of one process with all rows. mlx-lm itself
averages the ranks' means as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from ...arrays.types import Array, Tree
from ...checkpoint.user_data import random_key, set_random_key
from ...comm.agreement import MismatchError, agree
from ...optim.optimizer import DistributedOptimizer
from .batches import Batch

Loss = Callable[..., tuple[Array, Array]]
_NO_TOKENS = (
    "mlx_lm.train: every rank has weight 0: no token of a step counts, since all are "
    "masked or beyond max_seq_length. The step was compiled, so that parameters of it "
    "may be nan: go on from the last file or checkpoint that was saved"
)


class Measured(NamedTuple):
    """A micro-batch on this rank: lazy scalars.

    Attributes:
        loss: the sum over its tokens.
        tokens: how many count.
    """

    loss: Array
    tokens: Array

    @classmethod
    def of(cls, mean: Array, tokens: Array) -> Measured:
        """Of a mean, which is nan where there are no tokens."""
        total = mx.where(tokens > 0, mean.astype(mx.float32) * tokens, 0.0)
        return cls(total, tokens.astype(mx.float32))


def finite(loss: Loss) -> Loss:
    """Return a loss that is 0 of a rank's rows without tokens, in place of nan."""

    def of(*arguments: Any) -> tuple[Array, Array]:
        mean, tokens = loss(*arguments)
        return mx.where(tokens > 0, mean, 0.0), tokens

    return of


class Step(Protocol):
    """Takes micro-batches, of which the last one of a step moves the parameters."""

    def __call__(self, batch: Batch, *, is_last: bool) -> Measured:
        """Return this rank's loss, evaluated."""


class CompiledStep:
    """A whole step in `mx.compile`, over the native transport.

    Args:
        count: micro-batches of a step. Their gradients are added in their own dtype,
            as mlx-lm does.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: DistributedOptimizer,
        loss: Loss,
        count: int,
    ):
        self._model, self._optimizer, self._count = model, optimizer, count
        self._loss_and_gradients = nn.value_and_grad(model, loss)
        self._state = [model.state, optimizer.state, mx.random.state]
        self._compiled = mx.compile(self._traced, self._state, self._state)
        self._sum: Tree = None
        self._tokens = 0.0  # of all ranks, since the last step

    def __call__(self, batch: Batch, *, is_last: bool) -> Measured:
        measured, total, self._sum = self._compiled(batch, self._sum, is_last)
        mx.eval(self._state, measured, total, self._sum)
        self._tokens += float(total.item())
        if is_last:
            if not self._tokens:
                raise MismatchError(_NO_TOKENS)
            self._tokens = 0.0
        return Measured(*measured)

    def _traced(
        self, batch: Batch, before: Tree, is_last: bool
    ) -> tuple[Measured, Array, Tree]:
        """Return this rank's loss, the tokens of all ranks, and sums of gradients."""
        (mean, tokens), gradients = self._loss_and_gradients(self._model, *batch)
        weight = tokens
        if self._count > 1:
            leaves = [gradient for _, gradient in tree_flatten(gradients)]
            # Not sent while this rank computes: MPI polls.
            counted = mx.depends([tokens], leaves)[0].astype(mx.float32)
            weight, total = None, self._total(counted)
            size = self._optimizer.world.size
            scale = counted * size / (mx.maximum(total, 1) * self._count)
            gradients = tree_map(partial(_scaled, scale), gradients)
        if before is not None:
            gradients = tree_map(mx.add, gradients, before)
        if is_last:
            self._optimizer.update(self._model, gradients, weight=weight)
            gradients = None
            if self._count == 1:
                total = self._optimizer.total_weight
        return Measured.of(mean, tokens), total, gradients

    def _total(self, tokens: Array) -> Array:
        """The tokens of a micro-batch on all ranks."""
        native = self._optimizer.world.native
        with native.tracing():
            return native.sum_scalar(tokens) if native.size > 1 else tokens


def _scaled(scale: Array, gradient: Array) -> Array:
    """Return a gradient times a factor: zeros where that is 0, even of nan."""
    product = (gradient.astype(mx.float32) * scale).astype(gradient.dtype)
    return mx.where(scale > 0, product, mx.zeros_like(product))


class EagerStep:
    """`optimizer.minimize`: no rank ever has all gradients.

    Micro-batches are added in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: DistributedOptimizer,
        loss: Loss,
        count: int,
    ):
        self._model, self._optimizer = model, optimizer
        self._loss, self._count = loss, count

    def __call__(self, batch: Batch, *, is_last: bool) -> Measured:
        optimizer = self._optimizer
        tokens = self._tokens(batch)
        weight = self._share(tokens) if self._count > 1 else tokens
        with nullcontext() if is_last else optimizer.no_sync():
            mean, tokens = optimizer.minimize(
                self._loss, self._model, *batch, weight=weight
            )
        measured = Measured.of(mean, tokens)
        mx.eval(measured, optimizer.state)
        return measured

    def _tokens(self, batch: Batch) -> float:
        """Count tokens before the step. The rest of the loss is never computed."""
        key = random_key()
        tokens = self._loss(self._model, *batch)[1]
        set_random_key((key,), 0)  # the step draws the same dropout again
        return float(tokens.item())

    def _share(self, tokens: float) -> float:
        """Return this rank's share of a micro-batch's tokens."""
        control = self._optimizer.world.control
        return tokens / max(1.0, sum(agree(control, "tokens", number=tokens)))
