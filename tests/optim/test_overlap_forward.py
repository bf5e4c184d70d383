"""Parameters that arrive behind the next forward pass: same bits, nothing stuck."""

import time
from contextlib import nullcontext

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from mlxdist.comm import deferred_gather
from mlxdist.world.world import World
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    linear_layers,
    make,
    parameters,
    rank_batch,
    seeded_net,
    update,
)
from tests.support.jobs import wait_until

pytestmark = pytest.mark.mpi(min_size=2)
OPTIONS = {"shard": "elements", "bucket_size": 64}


@pytest.fixture
def apart(world, mpi_group):
    """A world of the same ranks, as if each were on a host of its own."""
    part = World(mpi_group, "mpi", world.duplicate(), overlaps=True)
    yield part
    part.close()


@pytest.fixture
def hold_back(apart, monkeypatch):
    """A function: the last rank waits before it sends the second group and the rest."""
    exchange, sent = apart.peer_streams.exchange, []

    def hold(wait):
        def late(row, sizes):
            sent.append(row.size)
            if len(sent) == 2 and apart.rank == apart.size - 1:
                wait()
            return exchange(row, sizes)

        monkeypatch.setattr(apart.peer_streams, "exchange", late)

    return hold


def shortly():
    time.sleep(0.1)


def twins(world, **options):
    """Return two optimizers: one whose parameters arrive later, and one that waits."""
    later = distributed(world, **OPTIONS | options)
    return later, distributed(world, **OPTIONS | options, overlap_forward=False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {}),
        ("AdamW", {"shard": "tensors"}),
        ("Muon", {"shard": "tensors"}),
        ("AdamW", {"bucket_size": 2**20, "max_norm": 0.1}),
        ("AdamW", {"master_dtype": mx.float32, "ema_decay": 0.9}),
        ("AdamW", {"reproducible": True}),
        ("AdamW", {"accumulate": 2}),
        ("SGD", {"check_every": 1}),
        ("AdamW", {"check_finite": False}),
    ],
)
def test_parameters_and_state_have_the_bits_of_a_step_that_waits(name, options, apart):
    tree = parameters(name)
    results = []
    for overlap in (True, False):
        options = OPTIONS | options | {"overlap_forward": overlap}
        optimizer = distributed(apart, make(name), **options)
        optimizer.init(tree)
        text = "new parameters arrive behind the next forward pass"
        assert (text in str(optimizer.describe())) == overlap
        stepped = apply_steps(optimizer, tree, range(4), apart.rank)
        results.append((stepped, optimizer.gather_state()))
    (later, later_state), (waited, waited_state) = results
    assert_same_bits(later, waited)
    assert_same_bits(later_state, waited_state)


def test_training_has_the_losses_of_a_step_that_waits(apart):
    losses = []
    for optimizer in twins(apart):
        model = seeded_net(0)
        optimizer.init(model)
        steps = (update(model, optimizer, *rank_batch(apart, i)) for i in range(4))
        losses.append([loss.item() for loss in steps])
    assert losses[0] == losses[1]


def test_first_layers_do_not_wait_for_a_rank_that_sends_the_others_late(
    apart, hold_back, shared_folder
):
    model, (optimizer, _) = linear_layers(), twins(apart)
    optimizer.init(model)
    assert len(optimizer.pipelines.eager.wire.order) > 1
    gradients = model.trainable_parameters()
    others_went_on = []

    def wait_for_the_others():
        others = apart.size - 1
        went_on = wait_until(lambda: len(list(shared_folder.iterdir())) == others)
        others_went_on.append(went_on)

    hold_back(wait_for_the_others)
    apart.barrier()
    optimizer.update(model, gradients)
    mx.eval(model.layers[0].bias)
    if apart.rank < apart.size - 1:
        (shared_folder / str(apart.rank)).touch()
    mx.eval(model.parameters())
    assert others_went_on == [True] * (apart.rank == apart.size - 1)


@pytest.mark.parametrize(
    "read",
    [
        lambda model, folder: mx.save(str(folder / "x.npy"), model.layers[2].weight),
        lambda model, folder: model.save_weights(str(folder / "x.safetensors")),
        lambda model, folder: mx.clear_cache(),
        lambda model, folder: np.array(model.layers[2].weight),
    ],
    ids=["save", "save_weights", "clear_cache", "array"],
)
def test_whatever_reads_a_parameter_waits_for_it(read, apart, hold_back, tmp_path):
    hold_back(shortly)
    model, (optimizer, waiting) = linear_layers(), twins(apart)
    twin = linear_layers()
    optimizer.init(model)
    waiting.init(twin)
    optimizer.update(model, model.trainable_parameters())
    read(model, tmp_path)
    waiting.update(twin, twin.trainable_parameters())
    assert_same_bits(model.parameters(), twin.parameters())


def test_checkpoint_of_parameters_that_have_not_arrived_has_them(
    apart, hold_back, shared_folder
):
    hold_back(shortly)
    model, (optimizer, _) = linear_layers(), twins(apart)
    optimizer.init(model)
    optimizer.update(model, model.trainable_parameters())
    mlxdist.save_checkpoint(shared_folder, 1, model, optimizer)
    other, (loaded, _) = linear_layers(), twins(apart)
    loaded.init(other)
    mlxdist.load_checkpoint(shared_folder, other, loaded)
    assert_same_bits(model.parameters(), other.parameters())


def test_two_optimizers_and_init_again_share_the_streams(apart, hold_back):
    hold_back(shortly)
    models = [linear_layers(), linear_layers()]
    optimizers = twins(apart)[0], twins(apart, shard="tensors")[0]
    for _ in range(2):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.init(model)
            optimizer.update(model, model.trainable_parameters())
    assert_same_bits(models[0].parameters(), models[1].parameters())


def test_close_waits_for_parameters_that_have_not_arrived(world, mpi_group):
    with World(mpi_group, "mpi", world.duplicate(), overlaps=True) as part:
        model, (optimizer, _) = linear_layers(), twins(part)
        optimizer.init(model)
        optimizer.update(model, model.trainable_parameters())
    assert np.isfinite(np.array(model.layers[0].weight)).all()


def test_nothing_is_deferred_where_ranks_share_cores_or_keep_all_state(world, apart):
    for options, where in (({}, world), ({"shard": False}, apart)):
        optimizer = twins(where, **options)[0]
        optimizer.init(parameters())
        assert not optimizer.describe().overlaps_forward


class FailsLate(optim.Adam):
    """Raises an error at its third tensor on rank 0."""

    elementwise = True
    _left = 0

    def apply_single(self, gradient, parameter, state):
        self._left -= 1
        if self._left == 0:
            raise KeyError("boom")
        return super().apply_single(gradient, parameter, state)


def test_error_on_one_rank_leaves_all_ranks_with_the_same_parameters(apart):
    inner = FailsLate(0.5)
    optimizer = distributed(apart, inner, **OPTIONS)
    model = linear_layers()
    optimizer.init(model)
    inner._left = 3 if apart.rank == 0 else 0
    if apart.rank == 0:
        with pytest.raises(KeyError, match="boom"):
            optimizer.update(model, model.trainable_parameters())
    else:
        optimizer.update(model, model.trainable_parameters())
    assert apart.identical(model)


def test_rank_without_memory_for_a_message_ends_the_step_with_the_others(
    apart, monkeypatch
):
    allocate, calls = deferred_gather.uninitialized, []

    def fail_once(size, dtype):
        calls.append(size)
        if len(calls) == 2 and apart.is_root:
            raise MemoryError("boom")
        return allocate(size, dtype)

    monkeypatch.setattr(deferred_gather, "uninitialized", fail_once)
    model, (optimizer, _) = linear_layers(), twins(apart)
    optimizer.init(model)
    with pytest.raises(MemoryError) if apart.is_root else nullcontext():
        optimizer.update(model, model.trainable_parameters())
    assert apart.identical(model)
