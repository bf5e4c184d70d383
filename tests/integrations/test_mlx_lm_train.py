"""mlx-lm's training on N ranks: as in one process with the same rows."""

import shutil
from dataclasses import dataclass

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx_lm.tuner.datasets import CacheDataset

import mlxdist
from mlxdist.integrations.mlx_lm import train
from tests.support.fine_tuning import (
    Reports,
    Rows,
    arguments,
    difference,
    rows,
    tiny_model,
    train_alone,
)

pytestmark = pytest.mark.mpi
# The kernels of a compiled step take half a minute to compile on a CPU.
COMPILED = [
    pytest.param(True, marks=pytest.mark.long, id="compiled"),
    pytest.param(False, id="eager"),
]
SAME = 1e-5  # of losses: sums over ranks are rounded in another order


class Stopped(Exception):
    """Ends a training, as a kill does."""


@dataclass
class StopsAt(Reports):
    """Reports of a training that ends in the middle."""

    iteration: int

    def __post_init__(self):
        super().__init__()

    def on_train_loss_report(self, info):
        super().on_train_loss_report(info)
        if info["iteration"] == self.iteration:
            raise Stopped


def train_together(world, args, kind="full", *, dropout=0.0, reports=None, **options):
    """Train on the ranks of a world, with other random numbers and weights on each."""
    reports = reports or Reports()
    # The frozen weights of the other kinds are the same on all ranks.
    seed = world.rank if kind == "full" else 0
    model = tiny_model(kind, dropout=dropout, seed=seed)
    np.random.seed(world.rank)
    mx.random.seed(world.rank)
    options.setdefault("optimizer", optim.AdamW(1e-3))
    if not isinstance(options["optimizer"], mlxdist.DistributedOptimizer):
        options["optimizer"] = mlxdist.DistributedOptimizer(
            options["optimizer"], shard=True, world=world
        )
    sets = options.pop("sets", None) or (rows(30), rows(15, seed=1))
    optimizer = options.pop("optimizer")
    train(model, optimizer, *sets, args, training_callback=reports, **options)
    return model, reports


def assert_same_losses(reports, expected):
    assert reports.losses == pytest.approx(expected.losses, rel=0, abs=SAME)
    assert reports.val_losses == pytest.approx(expected.val_losses, rel=0, abs=SAME)


@pytest.mark.parametrize(
    ("kind", "shard", "compiled"),
    [
        ("lora", True, True),
        ("full", True, False),
        pytest.param("full", False, False, marks=pytest.mark.long),
        pytest.param("lora", False, True, marks=pytest.mark.long),
        pytest.param("lora", False, False, marks=pytest.mark.long),
        pytest.param("lora", True, False, marks=pytest.mark.long),
        pytest.param("dora", True, True, marks=pytest.mark.long),
        pytest.param("full", True, True, marks=pytest.mark.long),
        pytest.param("full", False, True, marks=pytest.mark.long),
    ],
)
def test_train_on_ranks_gives_the_losses_of_one_process(
    world, shared_folder, kind, shard, compiled
):
    args = arguments(shared_folder)
    _, alone = train_alone(kind, args)
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=shard)
    model, reports = train_together(
        world, args, kind, optimizer=optimizer, compiled=compiled
    )
    assert_same_losses(reports, alone)
    assert world.identical(model)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        (
            optim.SGD,
            {"grad_accumulation_steps": 2, "iters": 7, "steps_per_report": 3},
        ),
        (optim.SGD, {"grad_checkpoint": True}),
        pytest.param(optim.Muon, {}, marks=pytest.mark.long),
        pytest.param(optim.Adafactor, {}, marks=pytest.mark.long),
    ],
    ids=["accumulated", "checkpointed", "Muon", "Adafactor"],
)
def test_train_with_options_gives_the_model_of_one_process(
    world, shared_folder, optimizer, changes, compiled
):
    args = arguments(shared_folder, **changes)
    expected, alone = train_alone("full", args, optimizer=optimizer(1e-2))
    following = np.random.random()
    layer = type(expected.layers[0])
    call = layer.__call__
    model, reports = train_together(
        world, args, optimizer=optimizer(1e-2), compiled=compiled
    )
    assert_same_losses(reports, alone)
    assert np.random.random() == following
    assert layer.__call__ is call
    assert difference(model, expected) < SAME
    assert world.identical(model)


class MostlyPrompts(Rows):
    """Rows of which the longest alone has tokens that count."""

    def process(self, row):
        is_longest = len(row) == max(map(len, self))
        return row, 0 if is_longest else len(row) + 1


def test_train_with_ranks_whose_rows_have_no_tokens_gives_the_losses_of_one_process(
    world, shared_folder
):
    args = arguments(shared_folder, batch_size=world.size, iters=2)
    data = CacheDataset(MostlyPrompts(world.size))
    _, alone = train_alone("full", args, sets=(data, data))
    _, reports = train_together(world, args, compiled=False, sets=(data, data))
    assert_same_losses(reports, alone)


class Prompts(Rows):
    """Rows of which no token counts."""

    def process(self, row):
        return row, len(row) + 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("compiled", COMPILED)
def test_train_without_any_token_ends_all_ranks_before_anything_is_saved(
    world, shared_folder, compiled, count
):
    changes = {"grad_accumulation_steps": count, "steps_per_save": 1, "iters": 4}
    args = arguments(shared_folder, **changes)
    data = CacheDataset(Prompts(30))
    with pytest.raises(mlxdist.MismatchError, match="every rank has weight 0"):
        train_together(world, args, compiled=compiled, sets=(data, None))
    world.barrier()
    assert len(list(shared_folder.iterdir())) == 2 * (count - 1)


@pytest.mark.parametrize(
    "count",
    [pytest.param(1, marks=pytest.mark.long, id="plain"), 2],
)
@pytest.mark.parametrize("compiled", COMPILED)
def test_train_stopped_and_resumed_by_one_rank_goes_on_as_if_undisturbed(
    world, shared_folder, compiled, count
):
    changes = {"iters": 8, "steps_per_report": 3, "grad_accumulation_steps": count}
    changes["steps_per_eval"] = 4  # in the middle of an epoch
    args = arguments(shared_folder, **changes)
    sets = rows(36), rows(36, seed=1)  # orders of 3 batches are drawn
    _, alone = train_alone("full", args, sets=sets)
    reports = StopsAt(6)
    options = {"compiled": compiled, "sets": sets, "checkpoint_every": 3}
    with pytest.raises(Stopped):
        train_together(world, args, reports=reports, **options)
    folder = shared_folder.with_name(f"{shared_folder.name}-{world.rank}")
    shutil.copytree(shared_folder, folder)  # each rank goes on alone in its own
    args = arguments(folder, **changes)
    one = world.split(world.rank)
    _, resumed = train_together(one, args, compiled=compiled, sets=sets, resume=True)
    one.close()
    assert resumed.train[0]["iteration"] == 6
    done = len(alone.losses) - len(resumed.losses)
    assert resumed.losses == pytest.approx(alone.losses[done:], rel=0, abs=SAME)
    assert resumed.val_losses[-1] == pytest.approx(alone.val_losses[-1], abs=SAME)
    tokens = [info["trained_tokens"] for info in resumed.train]
    assert tokens[: len(reports.train) - done] == [
        info["trained_tokens"] for info in reports.train[done:]
    ]


def test_train_resumed_draws_the_dropout_of_an_undisturbed_run(world, shared_folder):
    args = arguments(shared_folder, iters=5)
    _, undisturbed = train_together(world, args, "lora", dropout=0.5)
    with pytest.raises(Stopped):
        train_together(
            world,
            args,
            "lora",
            dropout=0.5,
            reports=StopsAt(3),
            checkpoint_every=2,
        )
    _, resumed = train_together(world, args, "lora", dropout=0.5, resume=True)
    assert resumed.losses == undisturbed.losses[-3:]


def test_train_of_lora_with_8_bit_state_resumes_as_an_undisturbed_run(
    world, shared_folder
):
    def options():
        optimizer = mlxdist.DistributedOptimizer(
            optim.AdamW(1e-2), shard=True, state_dtype="int8", world=world
        )
        return {"optimizer": optimizer}

    args = arguments(shared_folder, iters=5)
    _, undisturbed = train_together(world, args, "lora", **options())
    stops = {"reports": StopsAt(3), "checkpoint_every": 2}
    with pytest.raises(Stopped):
        train_together(world, args, "lora", **options(), **stops)
    _, resumed = train_together(world, args, "lora", **options(), resume=True)
    assert resumed.losses == undisturbed.losses[-3:]
    assert undisturbed.losses[-1] < undisturbed.losses[0]
