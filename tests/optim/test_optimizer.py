"""DistributedOptimizer as MLX's users know an optimizer, and what it refuses."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import (
    Net,
    assert_same_bits,
    batch,
    gradients,
    largest_difference,
    loss,
    parameters,
)
from tests.support.examples import (
    distributed as wrap,
)

pytestmark = pytest.mark.mpi
SHARDS = [False, "elements", "tensors"]


def test_it_is_an_optimizer(world):
    ours = wrap(world)
    assert isinstance(ours, optim.Optimizer)
    ours.init(parameters())
    assert ours.step.item() == 0
    assert {"step", "learning_rate", "embed"} <= ours.state.keys()
    ours.learning_rate = 0.25
    assert ours.learning_rate.item() == 0.25


def test_init_gives_all_ranks_the_model_of_rank_0(world):
    mx.random.seed(100 + world.rank)
    model = Net()
    before = tree_map(lambda leaf: leaf, model.parameters())
    assert world.identical(model) == (world.size == 1)
    wrap(world, shard=True).init(model)
    assert world.identical(model)
    if world.is_root:
        assert_same_bits(model.parameters(), before)


def test_a_tree_that_differs_is_refused_with_the_remedy(world):
    tree = {"w": mx.full((3,), float(world.rank))}
    ours = wrap(world)
    if world.size == 1:
        ours.init(tree)
        return
    with pytest.raises(MismatchError, match=r"world\.broadcast\(parameters\)"):
        ours.init(tree)
    ours.init(world.broadcast(tree))


@pytest.mark.parametrize("shard", SHARDS)
def test_an_empty_gradient_steps_the_schedule(shard, world):
    ours = wrap(world, optim.SGD(lambda step: 0.5 / (1 + step)), shard=shard)
    ours.init(parameters())
    assert ours.apply_gradients({}, {}) == {}
    assert ours.step.item() == 1
    ours.apply_gradients({}, {})
    assert ours.learning_rate.item() == 0.25


@pytest.mark.parametrize("shard", SHARDS)
def test_init_is_optional_as_in_mlx(shard, world):
    ours, plain = wrap(world, shard=shard), optim.AdamW(1e-2)
    own = parameters()
    grads = gradients(own, 0, 0)
    assert_same_bits(
        ours.apply_gradients(grads, own), plain.apply_gradients(grads, own)
    )


def test_the_order_of_dicts_does_not_matter(world):
    """FACTS: nn.average_gradients mixes layers where insertion orders differ."""
    names = ["a", "b", "c", "d"]
    order = names if world.rank % 2 == 0 else names[::-1]
    tree = {n: mx.full((4,), float(ord(n))) for n in order}
    grads = {n: mx.full((4,), float(ord(n))) for n in order}
    for shard in SHARDS:
        result = wrap(world, optim.SGD(1.0), shard=shard).apply_gradients(grads, tree)
        assert all(not mx.any(leaf).item() for leaf in result.values())
    mean = mlxdist.average_gradients(grads, world=world)
    assert [mean[n][0].item() for n in names] == [float(ord(n)) for n in names]
    assert list(mean) == order


def test_parameters_may_be_a_superset_of_the_gradients(world):
    model = Net()
    ours = wrap(world, shard=True)
    ours.init(model)
    x, y = batch(0, 4)
    _, grads = nn.value_and_grad(model, loss)(model, x, y)
    assert "frozen" not in ours.state
    result = ours.apply_gradients(grads, model)
    assert [p for p, _ in tree_flatten(result)] == [p for p, _ in tree_flatten(grads)]


@pytest.mark.parametrize("shard", SHARDS)
def test_quantized_weights_under_adapters_train(shard, world):
    """uint32 weights stay as they are; only the adapters are trained."""

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.QuantizedLinear(64, 32, group_size=32, bits=4)
            self.a = mx.random.normal((64, 2))
            self.b = mx.zeros((2, 32))

        def __call__(self, x):
            return self.base(x) + (x @ self.a) @ self.b

    mx.random.seed(world.rank)
    model = Adapted()
    ours = wrap(world, shard=shard)
    ours.init(model)
    assert world.identical(model)
    packed = mx.array(model.base.weight)
    assert packed.dtype == mx.uint32
    for step in range(2):
        x = mx.random.normal((3, 64), key=mx.random.key(step))
        _, grads = nn.value_and_grad(model, lambda m, x: (m(x) ** 2).mean())(model, x)
        ours.update(model, grads)
    assert world.identical(model)
    assert mx.array_equal(packed, model.base.weight)
    assert mx.any(model.b != 0)


@pytest.mark.parametrize("shard", SHARDS)
def test_tied_weights_train_as_in_mlx(shard, world):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.head = self.embed

        def __call__(self, x):
            return self.head.as_linear(self.embed(x))

    mx.random.seed(2)
    model, twin = Tied(), Tied()
    twin.update(model.parameters())
    ours, plain = wrap(world, shard=shard), optim.AdamW(1e-2)
    ours.init(model)
    for _ in range(3):
        for net, optimizer in ((model, ours), (twin, plain)):
            value_and_grad = nn.value_and_grad(net, lambda m, x: m(x).square().mean())
            _, grads = value_and_grad(net, mx.array([1, 2, 3]))
            optimizer.update(net, grads)
    assert model.head.weight is model.embed.weight
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("transport", ["native", "host"])
def test_traffic_is_what_the_plan_says(shard, transport, world):
    own = {k: v for k, v in parameters().items() if v_is_wide(v)}
    ours = wrap(world, shard=shard, transport=transport, bucket_size=200)
    ours.init(own)
    told = ours.describe().traffic
    wire = world.native if transport == "native" else world.host_transport
    collectives, sent = wire.traffic.collectives, wire.traffic.bytes_sent
    ours.apply_gradients(gradients(own, 0, world.rank), own)
    assert wire.traffic.collectives - collectives == told.collectives
    assert wire.traffic.bytes_sent - sent == told.bytes_sent
    if transport == "host" and shard == "elements":
        nbytes = sum(leaf.nbytes for _, leaf in tree_flatten(own))
        sums = world.mean(float(told.bytes_sent)) * world.size
        share = 2 * (world.size - 1)
        assert sums == share * nbytes  # over all ranks: 2(N-1)/N of it on each


def v_is_wide(leaf):
    return all(a.dtype == mx.float32 for _, a in tree_flatten(leaf))


def test_wire_dtype_halves_the_gradients_bytes(world):
    own = {"w": mx.zeros((1000,))}
    grads = {"w": mx.full((1000,), float(world.rank))}
    full, half = (
        wrap(world, optim.SGD(1.0), shard=True, transport="host", wire_dtype=dtype)
        for dtype in (None, mx.bfloat16)
    )
    full.init(own)
    half.init(own)
    result = half.apply_gradients(grads, own)
    assert result["w"][0].item() == pytest.approx(-(world.size - 1) / 2)
    if world.size > 1:
        ratio = half.describe().traffic.bytes_sent / full.describe().traffic.bytes_sent
        assert ratio == pytest.approx(0.75, abs=0.01)


def test_sixteen_bit_gradients_are_added_in_float32(world):
    """FACTS: a bfloat16 all_sum rounds at every hop, 256 + 1 + 1 + 1 = 258."""
    value = 256.0 if world.rank == 0 else 1.0
    grads = {"w": mx.full((5,), value, mx.bfloat16)}
    own = {"w": mx.zeros((5,), mx.bfloat16)}
    total = 256.0 + world.size - 1
    wanted = mx.array(total / world.size).astype(mx.bfloat16).item()
    for shard in SHARDS:
        for transport in ("native", "host"):
            ours = wrap(world, optim.SGD(1.0), shard=shard, transport=transport)
            result = ours.apply_gradients(grads, own)
            assert result["w"].tolist() == [-wanted] * 5
    assert mlxdist.average_gradients(grads, world=world)["w"][0].item() == wanted


def test_users_can_keep_old_parameters(world):
    """Nothing is written into arrays that a user holds."""
    own = parameters()
    ours = wrap(world, shard=True)
    ours.init(own)
    held = []
    for step in range(3):
        own = ours.apply_gradients(gradients(own, step, world.rank), own)
        mx.eval(own)
        held.append((own, tree_map(lambda leaf: mx.array(leaf), own)))
        mx.eval(held)
    for kept, copy in held:
        assert_same_bits(kept, copy)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("transport", ["native", "host"])
def test_the_norm_of_large_gradients_is_no_overflow(shard, transport, world):
    """Squares of 2e19 are beyond float32; the gradients and their norm are not."""
    ours = wrap(world, optim.SGD(0.0), shard=shard, transport=transport, max_norm=1.0)
    own = {"w": mx.zeros(9), "v": mx.zeros((2, 2))}
    ours.init(own)
    ours.apply_gradients({"w": mx.full((9,), 2e19), "v": mx.zeros((2, 2))}, own)
    assert ours.grad_norm.item() == pytest.approx(6e19, rel=1e-5)
