"""Masters, and clipping in 16 bits."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from mlxdist.optim import optimizer as module
from tests.support.examples import (
    assert_same_bits,
    gradients,
    largest_difference,
    make,
    mean_of,
    shard_modes,
)
from tests.support.examples import distributed_with_masters as wrap

pytestmark = pytest.mark.mpi
SHARDS = [False, "elements", "tensors"]
TRANSPORTS = ["native", "host"]


def narrow_tree(dtype):
    key = mx.random.key(3)
    shapes = {"a": (9, 5), "b": (7,), "c": (4, 4), "d": (3,)}
    tree = {n: mx.random.normal(s, key=key) for n, s in shapes.items()}
    tree = tree_map(lambda leaf: leaf.astype(dtype), tree)
    return {**tree, "wide": mx.random.normal((6,), key=key)}


def wide(tree):
    return tree_map(lambda leaf: leaf.astype(mx.float32), tree)


def like(tree, other):
    return tree_map(lambda leaf, own: leaf.astype(own.dtype), tree, other)


NAMES = ["AdamW", "SGD", "Lion", "Muon", "Adafactor", "MultiOptimizer"]
CASES = [
    pytest.param(name, shard, transport, id=f"{name}-{shard}-{transport}")
    for name in NAMES
    for shard in shard_modes(name)
    for transport in TRANSPORTS
]


@pytest.mark.parametrize(("name", "shard", "transport"), CASES)
@pytest.mark.parametrize(
    "dtype", [mx.bfloat16, pytest.param(mx.float16, marks=pytest.mark.long)]
)
def test_masters_are_float32_training(name, shard, transport, dtype, world):
    """What one process does in float32, of which the parameters are the rounding."""
    ours, plain = wrap(world, make(name), shard=shard, transport=transport), make(name)
    own = narrow_tree(dtype)
    twin = wide(own)
    ours.init(own)
    for step in range(4):
        every = [gradients(own, step, r) for r in range(world.size)]
        own = ours.apply_gradients(every[world.rank], own)
        twin = plain.apply_gradients(mean_of([wide(one) for one in every]), twin)
        assert_same_bits(own, like(twin, own))
    state = ours.gather_state()
    held = dict(tree_flatten(state))
    for path, array in held.items():
        if path.split(".")[-1] in ("m", "v", "master"):
            assert array.dtype == mx.float32, path


def find(tree, key):
    return {p: a for p, a in tree_flatten(tree) if p.endswith(f".{key}")}


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("size", [0, 2**40])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_compiled_and_flat_steps_keep_masters(
    shard, size, max_norm, world, monkeypatch
):
    monkeypatch.setattr(module, "COMPILED_FROM", size)
    options = {"bucket_size": 2**20, "shard": shard, "max_norm": max_norm}
    own = narrow_tree(mx.bfloat16)
    twin = wide(own)
    ours, plain = wrap(world, ema_decay=0.5, **options), optim.AdamW(1e-2)
    ours.init(own)
    averages = {p: mx.array(a) for p, a in twin.items()}
    for step in range(3):
        grads = gradients(own, step, 0)
        own = ours.apply_gradients(grads, own)
        full = wide(grads)
        if max_norm is not None:
            full, _ = optim.clip_grad_norm(full, max_norm)
        twin = plain.apply_gradients(full, twin)
        averages = {p: 0.5 * a + 0.5 * twin[p] for p, a in averages.items()}
    assert largest_difference(like(own, twin), like(like(twin, own), twin)) < 1e-2
    state = ours.gather_state()
    for path in ("a", "b", "c", "d"):
        assert largest_difference(state[path]["master"], twin[path]) < 1e-6
    for path, average in averages.items():
        assert largest_difference(state[path]["average"], average) < 1e-6
    assert "master" not in state["wide"]
    assert ours._local_update._flats[0] is None or not size


def test_the_learning_rate_is_not_rounded(world):
    """1e-3 is 0.00099945 in bfloat16, and such steps vanish beside a 1."""
    for masters, moved in ((mx.float32, True), (None, False)):
        own = {"w": mx.ones(4, mx.bfloat16)}
        ours = wrap(world, optim.SGD(1e-3), shard=True, master_dtype=masters)
        ours.init(own)
        for _ in range(10):
            own = ours.apply_gradients({"w": mx.ones(4, mx.bfloat16)}, own)
        assert (own["w"][0].item() != 1.0) == moved
    state = wrap(world, optim.SGD(1e-3), shard=True)
    state.init(own := {"w": mx.ones(4, mx.bfloat16)})
    state.apply_gradients({"w": mx.ones(4, mx.bfloat16)}, own)
    master = state.gather_state()["w"]["master"]
    assert master.tolist() == [mx.array(1.0 - 1e-3).item()] * 4


def test_bytes_of_state_and_on_the_wire(world):
    """4 + 12/N bytes a parameter with AdamW; parameters travel as bfloat16."""
    model = nn.Sequential(*(nn.Linear(101, 101) for _ in range(7)))
    model.set_dtype(mx.bfloat16)
    ours = wrap(world, shard=True, transport="host", bucket_size=2**20)
    ours.init(model)
    size = sum(p.size for _, p in tree_flatten(model.parameters()))
    told = ours.describe()
    assert sum(told.state_bytes_by_rank) == 12 * size
    assert max(told.state_bytes_by_rank) <= 12 * size / world.size * 1.01
    wire = world.host_transport.traffic
    before = wire.bytes_sent
    grads = tree_map(mx.ones_like, model.trainable_parameters())
    ours.update(model, grads)
    assert wire.bytes_sent - before == told.traffic.bytes_sent
    sums = world.mean(float(told.traffic.bytes_sent)) * world.size
    assert sums == (world.size - 1) * (2 + 2) * size


@pytest.mark.parametrize("shard", SHARDS)
def test_a_parameter_that_was_changed_counts(shard, world):
    own = {"w": mx.ones(5, mx.bfloat16)}
    ours = wrap(world, optim.SGD(0.5), shard=shard, check_every=0)
    ours.init(own)
    own = ours.apply_gradients({"w": mx.ones(5, mx.bfloat16)}, own)
    own = {"w": mx.full((5,), 8.0, mx.bfloat16)}
    own = ours.apply_gradients({"w": mx.ones(5, mx.bfloat16)}, own)
    assert own["w"].tolist() == [7.5] * 5


@pytest.mark.parametrize("shard", SHARDS)
def test_masters_go_through_checkpoints(shard, world, shared_folder):
    def started(part, masters=mx.float32):
        own = narrow_tree(mx.bfloat16)
        ours = wrap(part, shard=shard, master_dtype=masters)
        ours.init(own)
        return own, ours

    def train(own, ours, steps):
        for step in steps:
            own = ours.apply_gradients(gradients(own, step, 0), own)
        return own

    own, ours = started(world)
    own = train(own, ours, range(3))
    mlxdist.save_checkpoint(shared_folder, 3, own, ours)
    own = train(own, ours, range(3, 6))
    for part in (world, world.split(world.rank)):
        other, resumed = started(part)
        mlxdist.load_checkpoint(shared_folder, other, resumed)
        other = train(other, resumed, range(3, 6))
        assert_same_bits(other, own)
        assert_same_bits(resumed.gather_state(), ours.gather_state())


# -- clipping


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_norms_of_16_bit_gradients_do_not_overflow(shard, transport, dtype, world):
    own = {"w": mx.ones(100, dtype), "b": mx.ones((3, 3), dtype)}
    ours = wrap(world, optim.SGD(1.0), shard=shard, transport=transport, max_norm=1.0)
    ours.init(own)
    grads = tree_map(lambda leaf: mx.full(leaf.shape, 4096.0, dtype), own)
    own = ours.apply_gradients(grads, own)
    norm = 4096 * 109**0.5
    assert ours.grad_norm.item() == pytest.approx(norm, rel=1e-5)
    assert own["w"][0].item() == pytest.approx(1 - 4096 / norm, rel=1e-2)


@pytest.mark.parametrize("shard", SHARDS)
def test_tied_and_frozen_parameters_count_once(shard, world):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.fixed = nn.Linear(4, 4)
            self.head = self.embed
            self.fixed.freeze()

        def __call__(self, x):
            return self.head.as_linear(self.fixed(self.embed(x)))

    mx.random.seed(2)
    model = Tied()
    ours = wrap(world, optim.SGD(0.0), shard=shard, max_norm=1.0)
    ours.init(model)
    fixed = model.fixed.parameters()

    def computed(weight):
        hidden = weight[mx.array([1, 2, 3])] @ fixed["weight"].T + fixed["bias"]
        return (hidden @ weight.T).square().mean()

    wanted = mx.grad(computed)(model.embed.weight).square().sum().sqrt().item()
    value_and_grad = nn.value_and_grad(model, lambda m, x: m(x).square().mean())
    ours.update(model, value_and_grad(model, mx.array([1, 2, 3]))[1])
    assert ours.grad_norm.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"master_dtype": mx.bfloat16}, "master_dtype is"),
        ({"loss_scale": 0}, "loss_scale is 0"),
        ({"loss_scale": "big"}, "loss_scale is 'big'"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0"),
        ({"sync_buffers": "all"}, "sync_buffers is 'all'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told, world):
    with pytest.raises(ValueError, match=told):
        wrap(world, **options)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_compiled_step_captures_masters(shard, world):
    own = {"w": mx.ones(4, mx.bfloat16)}
    ours = wrap(world, optim.SGD(1e-3), shard=shard, transport="native")
    ours.init(own)
    held = {"own": own}

    def step(grads):
        held["own"] = ours.apply_gradients(grads, held["own"])

    step = mx.compile(step, inputs=[held, ours.state], outputs=[held, ours.state])
    for _ in range(10):
        step({"w": mx.ones(4, mx.bfloat16)})
        mx.eval(held, ours.state)
    assert held["own"]["w"].tolist() == [mx.array(0.99).astype(mx.bfloat16).item()] * 4
