"""mlx-lm's `train` on N ranks.

`batch_size` counts the rows of all ranks. Their order depends on NumPy's random state
alone, that of rank 0. Losses and gradients are means over the tokens of all ranks, so
that N ranks train as one process does. Rank 0's trainable parameters are put on all
ranks first; the frozen ones must be the same. Rank 0 saves, under mlx-lm's names.

A step is compiled as mlx-lm's is, over the native transport, or taken by
`optimizer.minimize`: then no rank has all gradients, and sharded state sends fewer
bytes. Checkpoints are saved in the folder `mlxdist` beside `adapter_file`. They have
the trained parameters, the optimizer's state, the random state and the position in the
data, and any number of ranks resumes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager

from mlx import nn
from mlx.optimizers import Optimizer

from ...optim.optimizer import DistributedOptimizer
from ...world.join import init
from .arguments import Arguments, refusing
from .batches import Batches, Iterate
from .callbacks import Callback
from .step import Loss
from .training import Training
from .upstream import (
    TrainingArgs,
    default_loss,
    fitting_output,
    grad_checkpoint,
    iterate_batches,
    maybe_set_recommended_wired_limit,
)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    train_dataset: Sized,
    val_dataset: Sized | None = None,
    args: TrainingArgs | None = None,
    loss: Loss = default_loss,
    iterate_batches: Iterate = iterate_batches,
    training_callback: Callback | None = None,
    *,
    compiled: bool = False,
    checkpoint_every: int = 0,
    resume: bool = False,
) -> None:
    """Train as `mlx_lm.tuner.trainer.train` does, on N ranks. Called by all ranks.

    Args:
        optimizer: is wrapped in `DistributedOptimizer(optimizer, shard=True)` if need
            be.
        iterate_batches: yields tuples of arrays with the rows of all ranks.
        training_callback: gets means and sums over all ranks, on every rank.
        compiled: whether the whole step is compiled, as mlx-lm's is.
        checkpoint_every: iterations from one checkpoint to the next; 0 saves none.
        resume: continue from the last checkpoint.

    Raises:
        MismatchError: on all ranks, where the arguments differ or can't work.
        CheckpointError: on all ranks, where there is no checkpoint, or it is of another
            training.
    """
    if not isinstance(optimizer, DistributedOptimizer):
        optimizer = DistributedOptimizer(optimizer, shard=True, world=init())
    args = args or TrainingArgs()
    arguments = Arguments.of(args, train_dataset, val_dataset, checkpoint_every, resume)
    maybe_set_recommended_wired_limit()
    with fitting_output(), checkpointed(model, is_on=args.grad_checkpoint):
        with refusing():
            arguments.agree(optimizer.world, model, optimizer)
        batches = Batches(iterate_batches, optimizer.world)
        training = Training(
            arguments, model, optimizer, loss, batches, training_callback
        )
        with refusing():
            training.prepare()
        training.run(train_dataset, val_dataset, compiled=compiled)


@contextmanager
def checkpointed(model: nn.Module, *, is_on: bool) -> Iterator[None]:
    """While in it, layers compute their activations again, where that is on."""
    if not is_on:
        yield
        return
    kind = type(model.layers[0])
    before = kind.__call__
    grad_checkpoint(model.layers[0])
    try:
        yield
    finally:
        kind.__call__ = before
