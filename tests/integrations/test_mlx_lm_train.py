"""mlx-lm's training on N ranks: as in one process with the same rows."""

import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from mlxdist.integrations.mlx_lm import train
from tests.support.fine_tuning import (
    Reports,
    arguments,
    rows,
    tiny_model,
    train_alone,
)

pytestmark = pytest.mark.mpi


def train_together(world, kind, args, *, optimizer=None, model=None, **options):
    """Train on the ranks of the world, with other random numbers on each."""
    reports = Reports()
    model = model or tiny_model(kind)
    np.random.seed(world.rank)
    train(
        model,
        optimizer or optim.AdamW(1e-3),
        rows(30),
        rows(15, seed=1),
        args,
        training_callback=reports,
        **options,
    )
    return model, reports


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_train_on_ranks_gives_the_losses_of_one_process(
    world, shared_folder, kind, shard, compiled
):
    _, alone = train_alone(kind, arguments(shared_folder))
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=shard)
    args = arguments(shared_folder)
    model, reports = train_together(
        world, kind, args, optimizer=optimizer, compiled=compiled
    )
    assert reports.losses == pytest.approx(alone.losses, rel=0, abs=1e-5)
    assert reports.val_losses == pytest.approx(alone.val_losses, rel=0, abs=1e-5)
    assert world.identical(model)
