"""Which optimizers may be cut into slices, and what their tensors cost."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from mlxdist.layout.entries import Entry
from mlxdist.layout.sharding import make_plan
from mlxdist.optim.costs import costs, work
from mlxdist.optim.inner import ELEMENTWISE, is_elementwise, resolve_filters
from tests.support.examples import CLASSES, bits, make


def step_by_step(optimizer, parameter, pieces):
    """A parameter after some steps, updated in slices of it; and their state."""
    flat = [parameter.reshape(-1)[a:b] for a, b in pieces]
    if len(pieces) == 1:
        flat = [parameter]
    own = {str(f"piece{i}"): piece for i, piece in enumerate(flat)}
    optimizer.init(own)
    for step in range(4):
        grad = mx.random.normal(parameter.shape, key=mx.random.key(step))
        parts = [grad.reshape(-1)[a:b] for a, b in pieces]
        parts = [grad] if len(pieces) == 1 else parts
        own = optimizer.apply_gradients(
            {f"piece{i}": part for i, part in enumerate(parts)}, own
        )
    return mx.concatenate([piece.reshape(-1) for piece in own.values()])


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"MultiOptimizer"}))
def test_the_list_of_elementwise_optimizers_is_right(name):
    """A probe of every class of MLX: the same bits in slices, or else not listed."""
    parameter = mx.random.normal((6, 8), key=mx.random.key(9))
    whole = step_by_step(make(name), parameter, [(0, 48)])
    cut = step_by_step(make(name), parameter, [(0, 5), (5, 31), (31, 48)])
    same = bool((bits(whole) == bits(cut)).all())
    assert same == (CLASSES[name] in ELEMENTWISE)
    assert same == is_elementwise(make(name))


def test_matrices_for_muon_cost_more_than_their_bytes():
    square, thin = Entry("a", (512, 512), "float32"), Entry("b", (8, 32768), "float32")
    muon, adam = optim.Muon(0.1), optim.AdamW(0.1)
    assert work(adam, square) == work(adam, thin) == 512 * 512
    assert work(muon, square) > 20 * work(muon, thin)
    assert work(muon, Entry("c", (512,), "float32")) == 512


def test_tensors_are_balanced_by_what_they_cost():
    """Four expensive matrices and many cheap ones: one of the four for each rank."""
    entries = [Entry(f"square{i}", (512, 512), "float32") for i in range(4)]
    entries += [Entry(f"thin{i}", (4, 65536), "float32") for i in range(16)]
    chosen = optim.MultiOptimizer(
        [optim.Muon(0.1), optim.AdamW(0.1)], [lambda path, x: "square" in path]
    )
    arrays = {e.path: mx.zeros((1, 1)) for e in entries}
    resolved = resolve_filters(chosen, arrays)
    plan = make_plan(
        entries,
        4,
        strategy="tensors",
        bucket_size=2**20,
        costs=costs(resolved, entries),
    )
    for rank in range(4):
        owned = plan.shard(rank)
        assert sum("square" in path for path in owned) == 1
        assert sum("thin" in path for path in owned) == 4
