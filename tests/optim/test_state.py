"""The optimizer's state: gathered, loaded, kept, shared out."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from mlxdist import MismatchError
from tests.support.examples import (
    Net,
    assert_same_bits,
    batch,
    gradients,
    loss,
    parameters,
)
from tests.support.examples import (
    distributed as wrap,
)

pytestmark = pytest.mark.mpi
SHARDS = [False, "elements", "tensors"]


@pytest.mark.parametrize("shard", ["elements", "tensors"])
@pytest.mark.parametrize("transport", ["host", "native"])
def test_state_survives_gather_and_load(shard, transport, world):
    """Into plain MLX and back, across shard modes."""
    own = parameters()
    ours = wrap(world, shard=shard, transport=transport)
    ours.init(own)
    own = ours.apply_gradients(gradients(own, 0, 0), own)
    full = ours.gather_state()
    plain = optim.AdamW(1e-2)
    plain.state = full
    other = wrap(world, shard="elements" if shard == "tensors" else "tensors")
    other.init(own)
    other.load_state(full)
    assert other.step.item() == 1
    assert_same_bits(other.gather_state(), full)
    grads = gradients(own, 1, 0)
    assert_same_bits(
        other.apply_gradients(grads, own), plain.apply_gradients(grads, own)
    )


def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded(world):
    own = parameters()
    ours = wrap(world, shard=True)
    ours.init(own)
    ours.apply_gradients(gradients(own, 0, 0), own)
    full = ours.gather_state()
    wrong = {**full, "two": {"m": mx.zeros(3), "v": mx.zeros(3)}}
    with pytest.raises(MismatchError, match=r"two\.m"):
        ours.load_state(wrong)
    with pytest.raises(MismatchError, match="learning_rate"):
        ours.load_state({k: v for k, v in full.items() if k != "learning_rate"})
    assert_same_bits(ours.gather_state(), full)


def test_unfreezing_and_init_again_keeps_the_state(world):
    model = Net()
    ours = wrap(world, shard=True)
    ours.init(model)
    x, y = batch(0, 4)
    _, grads = nn.value_and_grad(model, loss)(model, x, y)
    ours.update(model, grads)
    before = ours.gather_state()
    model.frozen.unfreeze()
    _, grads = nn.value_and_grad(model, loss)(model, x, y)
    with pytest.raises(MismatchError, match=r"frozen.*init\(model\) again"):
        ours.update(model, grads)
    ours.init(model)
    after = ours.gather_state()
    assert_same_bits(after["head"], before["head"])
    assert mx.any(before["head"]["weight"]["m"] != 0)
    assert ours.step.item() == 1
    ours.update(model, grads)
    assert world.identical(model)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("several", [False, True])
def test_an_optimizer_with_a_past_shares_it(several, shard, world):
    """Rank 0's state on every rank: a state may be loaded before it is wrapped."""
    own = parameters()
    plain = optim.AdamW(1e-2)
    if several:
        by_shape = [lambda path, x: x.ndim == 2]
        plain = optim.MultiOptimizer([optim.AdamW(1e-2), optim.SGD(0.1)], by_shape)
    plain.init(own)
    if world.is_root:
        plain.apply_gradients(gradients(own, 0, 0), own)
        mx.eval(plain.state)
    past = dict(tree_flatten(plain.state))
    ours = wrap(world, plain, shard=shard)
    ours.init(own)
    assert ours.step.item() == 1
    state = ours.gather_state()
    assert world.identical(state)
    if world.is_root:
        kept = dict(tree_flatten(state))
        assert kept.keys() == past.keys()
        assert all(mx.array_equal(kept[path], past[path]) for path in past)
        assert any(
            mx.any(leaf != 0) for path, leaf in kept.items() if path[-2:] == ".m"
        )


def test_state_is_a_share_of_the_whole(world):
    """AdamW, shard=True: total/N + at most 1%, for sizes that N does not divide."""
    model = nn.Sequential(*(nn.Linear(101, 101) for _ in range(7)))
    ours = wrap(world, shard=True)
    ours.init(model)
    told = ours.describe()
    total = 2 * 4 * sum(p.size for _, p in tree_flatten(model.parameters()))
    assert told.state_bytes_unsharded == total
    assert max(told.state_bytes_by_rank) <= total / world.size * 1.01
    assert sum(told.state_bytes_by_rank) == total
    held = sum(
        a.nbytes for p, a in tree_flatten(ours.state) if p.endswith((".m", ".v"))
    )
    assert held == told.state_bytes
    assert f"rank {world.size - 1}: " in str(told)
