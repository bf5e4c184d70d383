"""The update that the package compiles itself: the same numbers as MLX's, eager."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from mlxdist.arrays.numpy_view import blank, raw
from mlxdist.comm import exchange, wire
from mlxdist.layout import buckets as layout
from mlxdist.optim import local_update as update
from mlxdist.optim import optimizer
from tests.support.examples import assert_as_eager, assert_same_bits

pytestmark = pytest.mark.mpi
INNER = {
    "AdamW": lambda: optim.AdamW(lambda step: 1e-2 / (1 + step), weight_decay=0.1),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9),
    "Lion": lambda: optim.Lion(1e-2),
}


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Compiled whatever the size; and tensors of 4 kB travel alone."""
    monkeypatch.setattr(optimizer, "COMPILED_FROM", 0)
    monkeypatch.setattr(layout, "ALONE_FROM", 4096)
    monkeypatch.setattr(wire, "_LARGE", 64)


def tree_of(seed, dtype=mx.float32):
    key = mx.random.key(seed)
    sizes = {"a": (40, 50), "b": (7,), "c": (3, 5), "d": (64, 33), "e": (1,)}
    return {
        name: mx.random.randint(-8, 8, shape, key=key).astype(dtype)
        for name, shape in sizes.items()
    }


def compiled(ours):
    steps = ours._local_update._steps
    return all(step._compiled is not None for bucket in steps for step in bucket)


@pytest.mark.parametrize("shard", [False, "elements", "tensors"])
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_the_same_bits_as_mlx(name, shard, dtype, world):
    ours = mlxdist.DistributedOptimizer(INNER[name](), world=world, shard=shard)
    plain = INNER[name]()
    own = twin = tree_of(0, dtype)
    ours.init(own)
    plain.init(twin)
    on_cpu = mx.default_device() == mx.cpu
    assert compiled(ours) == (dtype == mx.float32 or not on_cpu)
    for step in range(1, 4):
        grads = tree_of(step, dtype)
        own = ours.apply_gradients(grads, own)
        twin = plain.apply_gradients(grads, twin)
    assert_as_eager(own, twin, dtype)
    assert_as_eager(ours.gather_state(), plain.state, dtype)


def test_state_that_is_put_in_place_counts(world):
    """Small tensors' state is kept flat; what the user sees must not be a copy."""
    ours = mlxdist.DistributedOptimizer(INNER["SGD"](), world=world, shard="elements")
    plain = INNER["SGD"]()
    own = twin = tree_of(0)
    ours.init(own)
    plain.init(twin)
    for step in range(1, 5):
        grads = tree_of(step)
        own = ours.apply_gradients(grads, own)
        twin = plain.apply_gradients(grads, twin)
        full = tree_map(lambda leaf: leaf, plain.state)
        if step == 2:
            for name in ("b", "c", "d"):
                full[name]["v"] = full[name]["v"] + 1
            ours.load_state(full)
            plain.state = full
    assert_as_eager(own, twin)


def test_published_arrays_are_never_written_to_again(world):
    """What a user keeps of one step is the same after the next ones."""
    ours = mlxdist.DistributedOptimizer(INNER["AdamW"](), world=world, shard=True)
    own = tree_of(0)
    ours.init(own)
    kept = []
    for step in range(1, 6):
        own = ours.apply_gradients(tree_of(step), own)
        kept.append((own, {k: mx.array(v) + 0 for k, v in own.items()}))
        mx.eval(kept[-1][1])
    for held, copied in kept:
        assert_same_bits(held, copied)


def test_a_nan_is_found_though_buckets_go_on_at_once(world):
    ours = mlxdist.DistributedOptimizer(INNER["AdamW"](), world=world, shard=True)
    own = tree_of(0)
    ours.init(own)
    grads = tree_of(1)
    if world.rank == world.size - 1:
        grads["e"] = mx.array([float("nan")])
    state = ours.gather_state()
    if world.size == 1:
        return
    with pytest.raises(mlxdist.NonFiniteError, match="e has 1 of 1"):
        ours.apply_gradients(grads, own)
    assert_same_bits(ours.gather_state(), state)


def test_large_but_finite_gradients_are_no_error(world):
    """Their squares overflow float32, so that it can't be told beforehand."""
    ours = mlxdist.DistributedOptimizer(optim.SGD(1.0), world=world, shard=True)
    own = {"w": mx.zeros((100, 100))}
    ours.init(own)
    own = ours.apply_gradients({"w": mx.full((100, 100), 2.0**100)}, own)
    assert own["w"][0, 0].item() == -(2.0**100)


def test_without_a_compiler_it_still_trains(world, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(update.Step, "compile", refused)
    ours = mlxdist.DistributedOptimizer(INNER["SGD"](), world=world)
    own = tree_of(0)
    ours.init(own)
    assert not compiled(ours)
    assert (
        dict(tree_flatten(ours.apply_gradients(tree_of(1), own))).keys() == own.keys()
    )


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16, mx.float64])
def test_blank_memory_can_be_written_to(dtype):
    for size in (0, 1, 1000, 2**21):
        array = blank(size, dtype)
        assert (array.size, array.dtype) == (size, dtype)
        bits = raw(array)
        bits[:] = 0
        with mx.stream(mx.cpu):  # where float64 is
            assert not mx.any(array.astype(mx.float32)).item()


def test_squares_are_inf_where_they_are_not_finite():
    import numpy as np

    assert exchange.sum_of_squares(np.array([3, 4], np.float32)) == 25
    assert exchange.sum_of_squares(np.array([1e30], np.float32)) == float("inf")
    assert exchange.sum_of_squares(np.array([np.nan], np.float32)) == float("inf")
