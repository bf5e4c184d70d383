"""Whole steps inside mx.compile."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import Net, batch, largest_difference, loss

pytestmark = pytest.mark.mpi
FLOATS = [mx.float16, mx.bfloat16, mx.float32]


@pytest.mark.parametrize("shard", [False, "elements", "tensors"])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_a_compiled_step_is_the_same(shard, max_norm, world):
    """The whole step in mx.compile: model and optimizer state captured."""

    def build():
        mx.random.seed(4)
        model = Net()
        ours = mlxdist.DistributedOptimizer(
            optim.AdamW(1e-2), shard=shard, max_norm=max_norm, transport="native"
        )
        ours.init(model)
        return model, ours

    model, ours = build()
    state = [model.state, ours.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, y):
        value, grads = nn.value_and_grad(model, loss)(model, x, y)
        ours.update(model, grads)
        return value

    twin, plain = build()
    for index in range(5):
        x, y = batch(index * world.size + world.rank, 4)
        value = step(x, y)
        mx.eval(value, state)
        wanted, grads = nn.value_and_grad(twin, loss)(twin, x, y)
        plain.update(twin, grads)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert ours.step.item() == 5
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6
    assert world.identical(model)
    if max_norm is not None:
        with pytest.raises(ValueError, match=r"inside mx\.compile"):
            _ = ours.grad_norm


def test_a_compiled_step_takes_a_traced_weight(world):
    ours = mlxdist.DistributedOptimizer(optim.SGD(1.0), transport="native")
    own = {"w": mx.zeros(4)}
    ours.init(own)

    @partial(mx.compile, inputs=ours.state, outputs=ours.state)
    def step(grads, weight):
        return ours.apply_gradients(grads, own, weight=weight)

    for scale in (1.0, 2.0):
        weight = mx.array(scale * world.rank + 1)
        result = step({"w": mx.full((4,), float(world.rank))}, weight)
        weights = [scale * rank + 1 for rank in range(world.size)]
        wanted = sum(r * w for r, w in enumerate(weights)) / sum(weights)
        assert result["w"][0].item() == pytest.approx(-wanted)


def test_the_host_transport_refuses_to_be_compiled(world):
    ours = mlxdist.DistributedOptimizer(optim.SGD(1.0), transport="host")
    own = {"w": mx.zeros(4)}
    ours.init(own)

    @partial(mx.compile, inputs=ours.state, outputs=ours.state)
    def step(grads):
        return ours.apply_gradients(grads, own)

    with pytest.raises(ValueError, match='transport="native"'):
        step({"w": mx.ones(4)})


def test_compiling_before_init_says_so(world):
    ours = mlxdist.DistributedOptimizer(optim.SGD(1.0))
    step = mx.compile(lambda grads: ours.apply_gradients(grads, {"w": mx.zeros(4)}))
    with pytest.raises(ValueError, match=r"init\(model\) before mx\.compile"):
        step({"w": mx.ones(4)})


def test_a_rank_may_trace_again_alone(world):
    """For a last batch of another shape, which only some ranks have."""
    ours = mlxdist.DistributedOptimizer(optim.SGD(1.0), transport="native")
    own = {"w": mx.zeros(4)}
    ours.init(own)

    @partial(mx.compile, inputs=ours.state, outputs=ours.state)
    def step(x, weight):
        return ours.apply_gradients({"w": x.mean(axis=0)}, own, weight=weight)

    for rows in ([2] * world.size, [2 - rank % 2 for rank in range(world.size)]):
        mine = rows[world.rank]
        x = mx.full((mine, 4), float(world.rank))
        result = step(x, mx.array(float(mine)))
        wanted = sum(r * n for r, n in enumerate(rows)) / sum(rows)
        assert result["w"][0].item() == pytest.approx(-wanted)


def test_skipping_inside_compile_is_refused(world):
    ours = mlxdist.DistributedOptimizer(optim.SGD(1.0), skip_nonfinite=True)
    own = {"w": mx.zeros(4)}
    ours.init(own)
    step = mx.compile(lambda grads: ours.apply_gradients(grads, own))
    with pytest.raises(MismatchError, match="skip_nonfinite"):
        step({"w": mx.ones(4)})
