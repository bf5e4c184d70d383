"""The optimizer's state: gathered from the ranks, and loaded."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from mlxdist import MismatchError
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_transport,
    gradients,
    parameters,
)

pytestmark = pytest.mark.mpi


@each_transport
@pytest.mark.parametrize(
    ("shard", "other_shard"), [("elements", "tensors"), ("tensors", "elements")]
)
def test_state_gathered_and_loaded_under_another_shard_trains_on_as_mlx(
    shard, other_shard, transport, world
):
    tree = parameters()
    optimizer = distributed(world, shard=shard, transport=transport)
    optimizer.init(tree)
    tree = apply_steps(optimizer, tree, range(1))
    full = optimizer.gather_state()
    reference = optim.AdamW(1e-2)
    reference.state = full
    other = distributed(world, shard=other_shard)
    other.init(tree)
    other.load_state(full)
    assert other.step.item() == 1
    assert_same_bits(other.gather_state(), full)
    grads = gradients(tree, 1, 0)
    assert_same_bits(
        other.apply_gradients(grads, tree), reference.apply_gradients(grads, tree)
    )


def test_state_that_does_not_fit_is_refused_and_nothing_is_loaded(world):
    tree = parameters()
    optimizer = distributed(world, shard=True)
    optimizer.init(tree)
    apply_steps(optimizer, tree, range(1))
    full = optimizer.gather_state()
    wrong = {**full, "two": {"m": mx.zeros(3), "v": mx.zeros(3)}}
    with pytest.raises(MismatchError, match=r"two\.m"):
        optimizer.load_state(wrong)
    with pytest.raises(MismatchError, match="learning_rate"):
        optimizer.load_state({k: v for k, v in full.items() if k != "learning_rate"})
    assert_same_bits(optimizer.gather_state(), full)


@pytest.mark.mpi(min_size=2)
def test_state_that_differs_on_one_rank_is_refused_and_nothing_is_loaded(world):
    optimizer = distributed(world, optim.Adam(0.1), shard=True)
    optimizer.init({"w": mx.zeros(5)})
    full = optimizer.gather_state()
    if world.rank == world.size - 1:
        full["w"]["m"] = full["w"]["m"] + 1
    with pytest.raises(MismatchError, match="a state with sha256"):
        optimizer.load_state(full)
    assert_same_bits(optimizer.gather_state()["w"]["m"], mx.zeros(5))
