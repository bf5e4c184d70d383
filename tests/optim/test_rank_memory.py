"""Memory that is predicted, against what real optimizers hold, and activations."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxdist import MismatchError
from mlxdist.layout.memory import (
    ELEMENTWISE,
    STATE_COPIES,
    MemoryOptions,
    rank_memory,
    state_bytes,
)
from tests.support import examples
from tests.support.examples import distributed, full_like

pytestmark = pytest.mark.mpi

NAMES = {name.lower(): name for name in examples.CLASSES}
SHARDS = {kind: examples.shard_modes(NAMES[kind]) for kind in STATE_COPIES}
CASES = [
    *((kind, shard, mx.float32, {}) for kind in SHARDS for shard in SHARDS[kind]),
    *(
        (kind, shard, mx.bfloat16, options)
        for kind in ("adamw", "adafactor")
        for shard in SHARDS[kind]
        for options in ({}, {"master_dtype": mx.float32})
    ),
    *(
        (kind, shard, mx.bfloat16, {"state_dtype": "int8", "master_dtype": "24bit"})
        for kind in sorted(ELEMENTWISE)
        for shard in ("elements", "tensors")
    ),
]
MASTERS = {None: None, mx.float32: "float32", "24bit": "24bit"}


def model_of(dtype=mx.float32):
    """Return layers with sizes that 2, 3 and 4 ranks do not divide."""
    model = nn.Sequential(nn.Linear(65, 7), nn.Linear(7, 128), nn.Linear(128, 64))
    model.set_dtype(dtype)
    return model


def bytes_by_key(optimizer):
    """Return the bytes of state of this rank's parameters, by the last key."""
    found = {}
    for path, leaf in tree_flatten(optimizer.state):
        if path.startswith("layers."):
            key = path.rsplit(".", 1)[-1]
            found[key] = found.get(key, 0) + leaf.nbytes
    return found


@pytest.mark.parametrize(("kind", "shard", "dtype", "given"), CASES)
def test_rank_memory_state_is_what_each_class_holds(kind, shard, dtype, given, world):
    inner = examples.make(NAMES[kind])
    optimizer = distributed(world, inner, shard=shard, **given)
    optimizer.init(model_of(dtype))
    options = MemoryOptions(
        master_dtype=MASTERS[given.get("master_dtype")],
        state_dtype=given.get("state_dtype"),
    )
    memory = rank_memory(
        optimizer.describe().plan,
        world.rank,
        options,
        lambda entry, elements: state_bytes(entry, elements, kind, options),
    )
    held = bytes_by_key(optimizer)
    assert memory["master weights"] == sum(
        held.pop(key, 0) for key in ("master", "correction")
    )
    assert memory["state"] == sum(held.values())
    described = optimizer.describe().memory["update"]
    for name in ("state", "master weights"):
        assert described[name] == memory[name]


@examples.each_shard
def test_rank_memory_of_copies_is_what_the_rank_holds(shard, world):
    options = {"ema_decay": 0.9, "master_dtype": "24bit"}
    optimizer = distributed(world, shard=shard, **options)
    optimizer.init(model_of(mx.bfloat16))
    memory, held = optimizer.describe().memory["minimize"], bytes_by_key(optimizer)
    assert memory["EMA weights"] == held["average"] > 0
    assert memory["master weights"] == held["correction"] > 0
    assert memory["state"] == held["m"] + held["v"]


def test_rank_memory_counts_what_is_frozen_and_sums_of_micro_batches(world):
    model = model_of()
    model.layers[0].freeze()
    optimizer = distributed(world, accumulate=3)
    optimizer.init(model)
    memory = optimizer.describe().memory["update"]
    trained = sum(a.nbytes for _, a in tree_flatten(model.trainable_parameters()))
    assert memory["parameters"] == memory["gradients"] == trained
    assert memory["gradient sums"] == trained
    assert memory["frozen parameters"] == 4 * (65 * 7 + 7)


def test_savings_are_those_of_the_options_that_they_name(world):
    def memory(**options):
        optimizer = distributed(world, **options)
        optimizer.init(model_of(mx.bfloat16))
        described = optimizer.describe()
        return described.memory["minimize"].total, described.savings

    before, savings = memory(master_dtype=mx.float32)
    assert list(savings) == [
        *(["shard=True"] if world.size > 1 else []),
        'master_dtype="24bit"',
        'state_dtype="int8"',
    ]
    after, _ = memory(master_dtype="24bit")
    assert savings['master_dtype="24bit"'] == before - after
    quantized = 128 * 64  # elements of the only matrix that is large enough
    saved = 2 * (4 - 68 / 64) * quantized
    assert savings['state_dtype="int8"'] == saved
    if world.size > 1:
        after, _ = memory(master_dtype=mx.float32, shard=True)
        assert savings["shard=True"] == pytest.approx(before - after, rel=0.02)


class Noisy(nn.Module):
    """A model with dropout, and with running statistics."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(64, 64), nn.BatchNorm(64), nn.Dropout(0.5)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def everything_of(model, optimizer):
    """Return copies of all arrays that a step changes."""
    trees = [model.parameters(), optimizer.state, [mx.random.state[0]]]
    return dict(tree_flatten(tree_map(mx.array, trees)))


def loss_of(model, x):
    return model(x).square().mean()


def test_describe_with_a_batch_adds_activations_and_changes_nothing(world):
    model = Noisy()
    optimizer = distributed(world, shard=True)
    optimizer.init(model)
    mx.random.seed(world.rank)
    before = everything_of(model, optimizer)
    in_use = mx.ones(2**22)  # above what the passes take
    mx.eval(in_use)
    activations = [
        optimizer.describe(loss_of, model, mx.ones((rows, 64))).activations
        for rows in (64, 512)
    ]
    after = everything_of(model, optimizer)
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[path], after[path]) for path in before)
    assert activations[0] >= 64 * 64 * 4
    assert activations[1] - activations[0] >= 448 * 64 * 4
    assert activations[1] < in_use.nbytes
    text = str(optimizer.describe(loss_of, model, mx.ones((64, 64))))
    assert "\nactivations " in text
    assert "nor activations" not in text
    assert "nor activations" in str(optimizer.describe())


@pytest.mark.mpi(min_size=2)
def test_describe_with_a_loss_that_fails_on_one_rank_raises_on_all(world):
    model = model_of()
    optimizer = distributed(world)
    optimizer.init(model)

    def loss(model, x):
        if world.rank == 1:
            raise KeyError("label")
        return model(x).sum()

    with pytest.raises(MismatchError, match="rank 1: KeyError: 'label'"):
        optimizer.describe(loss, model, mx.ones((2, 65)))
    with pytest.raises(MismatchError, match="needs the model too"):
        optimizer.describe(loss)
    optimizer.update(model, full_like(model.trainable_parameters(), 1))


def test_description_of_one_rank_is_in_plain_words(world):
    optimizer = distributed(world.split(world.rank), optim.Lion(1e-3))
    optimizer.init(model_of())
    first, second, *_ = str(optimizer.describe()).splitlines()
    assert first.startswith("Lion on one rank, update ")
    assert second == "9,742 parameters in 6 tensors, 0.039 MB of state"
