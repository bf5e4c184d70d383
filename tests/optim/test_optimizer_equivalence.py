"""N ranks give what one process gives on the whole batch.

Every optimizer class of MLX, every shard mode, both transports. Gradients of integers
have exact sums, so their results are compared bit for bit.
"""

from functools import cache

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from tests.support.examples import (
    CLASSES,
    assert_same_bits,
    batch,
    distributed,
    each_shard,
    each_transport,
    gradients_of_ranks,
    largest_difference,
    loss_and_gradients,
    make,
    mean_of,
    optimizer_cases,
    parameters,
    rank_batch,
    seeded_net,
    update,
)

pytestmark = pytest.mark.mpi
STEPS = 5
# Sums of float32 in another order differ by up to 3e-6: for Muon, whose Newton-Schulz
# iteration amplifies the difference.
TOLERANCE = 1e-5

CASES = optimizer_cases(CLASSES)
# The pairs that transport="auto" chooses; equal bits above cover the others.
DEFAULT_CASES = [
    pytest.param(*case.values, id=case.id, marks=() if default else pytest.mark.long)
    for case in CASES
    for default in [(case.values[1] is False) == (case.values[2] == "native")]
]


def test_classes_include_all_of_mlx():
    assert {"SGD", "AdamW", "Lion", "Muon", "Adafactor", "MultiOptimizer"} <= {*CLASSES}
    assert len(CLASSES) >= 11


def train_both(name, shard, transport, world, *, integers):
    """Return parameters and optimizers after some steps: distributed, one process."""
    optimizer = distributed(
        world, make(name), shard=shard, transport=transport, bucket_size=256
    )
    tree = parameters(name)
    optimizer.init(tree)
    steps, twin, reference = train_one_process(name, world.size, integers)
    for every in steps:
        tree = optimizer.apply_gradients(every[world.rank], tree)
    mx.eval(tree)
    return tree, twin, optimizer, reference


@cache
def train_one_process(name, ranks, integers):
    """Return the gradients by step and rank, and what one process makes of all."""
    reference, twin = make(name), parameters(name)
    reference.init(twin)
    numbers = range(STEPS)
    steps = [gradients_of_ranks(twin, n, ranks, integers=integers) for n in numbers]
    for every in steps:
        twin = reference.apply_gradients(mean_of(every), twin)
    mx.eval(steps, twin, reference.state)
    return steps, twin, reference


@pytest.mark.parametrize(("name", "shard", "transport"), CASES)
def test_optimizer_on_integer_gradients_gives_the_bits_of_one_process(
    name, shard, transport, world
):
    tree, twin, optimizer, reference = train_both(
        name, shard, transport, world, integers=True
    )
    assert largest_difference(tree, parameters(name)) > 1e-5  # it has moved
    assert_same_bits(tree, twin)
    assert_same_bits(optimizer.gather_state(), reference.state)
    assert world.identical(tree)


@pytest.mark.parametrize(("name", "shard", "transport"), DEFAULT_CASES)
def test_optimizer_on_real_gradients_matches_one_process_within_rounding(
    name, shard, transport, world
):
    tree, twin, *_ = train_both(name, shard, transport, world, integers=False)
    others = dict(tree_flatten(twin))
    for path, array in tree_flatten(tree):
        # 16-bit parameters may round to a neighbour.
        tolerance = TOLERANCE if array.dtype == mx.float32 else 2e-2
        difference = largest_difference(array, others[path])
        assert difference < tolerance, f"{path}: {difference}"
    assert world.identical(tree)


@each_shard
@each_transport
def test_optimizer_on_real_gradients_gives_the_same_bits_for_each_shard(
    shard, transport, world
):
    tree, *_ = train_both("AdamW", shard, transport, world, integers=False)
    other, *_ = train_both("AdamW", False, transport, world, integers=False)
    assert_same_bits(tree, other)


@each_shard
@pytest.mark.parametrize("max_norm", [None, 0.1, 1e9])
def test_model_on_shares_of_a_batch_trains_as_on_the_whole(shard, max_norm, world):
    model, twin = seeded_net(5), seeded_net(5)
    optimizer = distributed(world, shard=shard, max_norm=max_norm)
    reference = optim.AdamW(1e-2)
    optimizer.init(model)
    share = slice(4 * world.rank, 4 * world.rank + 4)
    for step in range(STEPS):
        x, y = batch(step, 4 * world.size)
        update(model, optimizer, x[share], y[share])
        _, grads = loss_and_gradients(twin, x, y)
        if max_norm is not None:
            grads, norm = optim.clip_grad_norm(grads, max_norm)
            assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        reference.update(twin, grads)
    assert largest_difference(model.parameters(), twin.parameters()) < TOLERANCE
    assert world.identical(model)


@each_shard
@each_transport
def test_update_with_weights_gives_the_weighted_mean(shard, transport, world):
    """A rank without examples has weight 0, and nan for its gradients."""
    weights = [float(3 * rank + 1) for rank in range(world.size)]
    if world.size > 1:
        weights[-1] = 0.0
    optimizer = distributed(world, optim.SGD(0.5), shard=shard, transport=transport)
    tree = parameters()
    optimizer.init(tree)
    every = gradients_of_ranks(tree, 0, world.size)
    local = every[world.rank]
    if not weights[world.rank]:
        local = tree_map(lambda leaf: leaf * float("nan"), local)
    result = optimizer.apply_gradients(local, tree, weight=weights[world.rank])
    expected = optim.SGD(0.5).apply_gradients(mean_of(every, weights), tree)
    assert largest_difference(result, expected) < 1e-6
    assert world.identical(result)


@pytest.mark.parametrize("transports", [("native", "native"), ("host", "native")])
def test_two_optimizers_and_a_metric_train_as_each_alone(transports, world):
    def build(seed, transport):
        model = seeded_net(seed)
        optimizer = distributed(world, shard=seed == 1, transport=transport)
        optimizer.init(model)
        return model, optimizer

    expected = [build(seed, t) for seed, t in zip((1, 2), transports, strict=True)]
    for model, optimizer in expected:
        for step in range(4):
            update(model, optimizer, *rank_batch(world, step))
    pairs = [build(seed, t) for seed, t in zip((1, 2), transports, strict=True)]
    for step in range(4):
        losses = []
        for model, optimizer in pairs:
            losses.append(update(model, optimizer, *rank_batch(world, step)))
            assert world.mean(float(step)) == step
        if world.is_root:
            mx.eval(losses[1])  # the second model first, on one rank only
        mean = world.mean({"first": losses[0], "second": losses[1]})
        assert mean["first"].item() != mean["second"].item()
    for (model, _), (other, _) in zip(pairs, expected, strict=True):
        assert_same_bits(model.parameters(), other.parameters())
        assert world.identical(model)
