"""Ranks that disagree: refused on all of them, before anything has changed."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

import mlxdist
from mlxdist import MismatchError
from mlxdist.optim import setup as prepare
from tests.support.examples import assert_same_bits, gradients, parameters

pytestmark = pytest.mark.mpi
BOTH = pytest.mark.parametrize(
    ("shard", "transport"),
    [(False, "native"), (False, "host"), ("elements", "host"), ("tensors", "native")],
)


@pytest.fixture
def odd(world):
    """Whether this rank is the one that is different; needs two."""
    if world.size == 1:
        pytest.skip("one rank can't differ")
    return world.rank == world.size - 1


def lacks_one(tree):
    return {k: v for k, v in tree.items() if k != "conv"}


def has_one_more(tree):
    return {**tree, "more": mx.zeros(3)}


def has_another_shape(tree):
    return {**tree, "conv": tree["conv"].reshape(-1)}


def has_another_dtype(tree):
    return {**tree, "conv": tree["conv"].astype(mx.bfloat16)}


@BOTH
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lacks_one, r"there is no gradient for conv float32\[3, 2, 2, 2\]"),
        (has_one_more, "there is a gradient for more"),
        (has_another_shape, r"the gradient of conv is .*float32\[24\], wanted float32"),
        (
            has_another_dtype,
            r"the gradient of conv is .*bfloat16\[3, 2, 2, 2\],",
        ),
    ],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_gradients_that_differ(steps, change, told, shard, transport, odd, world):
    ours = mlxdist.DistributedOptimizer(
        optim.AdamW(0.1), shard=shard, transport=transport
    )
    own = parameters()
    ours.init(own)
    grads = gradients(own, 0, world.rank)
    for _ in range(steps):  # at step 0 checksums are compared too
        own = ours.apply_gradients(grads, own)
    before = tree_map(mx.array, ours.gather_state())
    with pytest.raises(MismatchError, match=told) as refusal:
        ours.apply_gradients(change(grads) if odd else grads, own)
    assert f"rank {world.size - 1}: " in str(refusal.value)
    assert "ready" in str(refusal.value)  # the others are told of, too
    assert "nothing was changed" in str(refusal.value)
    assert_same_bits(ours.gather_state(), before)
    assert world.identical(ours.apply_gradients(grads, own))


def test_another_number_of_steps(odd, world):
    ours = mlxdist.DistributedOptimizer(optim.SGD(0.1))
    own = {"w": mx.zeros(3)}
    ours.init(own)
    ours._updates += odd
    with pytest.raises(MismatchError, match=r"rank \d: 1 steps done"):
        ours.apply_gradients(own, own)


@BOTH
def test_no_gradients_on_one_rank(shard, transport, odd):
    ours = mlxdist.DistributedOptimizer(
        optim.SGD(0.1), shard=shard, transport=transport
    )
    own = {"w": mx.zeros(3)}
    ours.init(own)
    with pytest.raises(MismatchError, match="update without gradients"):
        ours.apply_gradients({} if odd else own, own)
    ours.apply_gradients(own, own)


def test_another_order_of_optimizers(odd):
    """Same-size sums of two models, swapped on one rank."""
    one, other = (mlxdist.DistributedOptimizer(optim.SGD(0.1)) for _ in range(2))
    own = {"w": mx.zeros(3)}
    one.init(own)
    other.init(own)
    first = other if odd else one
    with pytest.raises(MismatchError, match="the same calls in the same order"):
        first.apply_gradients(own, own)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (lambda: optim.SGD(0.1), lambda: optim.Adam(0.1), "Adam"),
        (lambda: optim.SGD(0.1), lambda: optim.SGD(0.2), "learning_rate = 0.2"),
        (lambda: optim.Lion(0.1), lambda: optim.Lion(0.1, [0.5, 0.5]), "betas"),
        (
            lambda: optim.SGD(optim.cosine_decay(0.1, 10)),
            lambda: optim.SGD(optim.cosine_decay(0.1, 20)),
            "learning_rate = ",
        ),
        (
            lambda: optim.MultiOptimizer([optim.SGD(0.1), optim.Adam(0.1)], [bool]),
            lambda: optim.MultiOptimizer([optim.SGD(0.1), optim.Adam(0.3)], [bool]),
            "optimizer 1: learning_rate",
        ),
    ],
)
def test_another_optimizer(ours, theirs, told, odd, world):
    wrapped = mlxdist.DistributedOptimizer(theirs() if odd else ours())
    with pytest.raises(MismatchError, match=told):
        wrapped.init({"w": mx.zeros(3)})


@pytest.mark.parametrize(
    "options", [{"shard": "tensors"}, {"max_norm": 1.0}, {"bucket_size": 77}]
)
def test_another_setting(options, odd, world):
    options = options if odd else {"shard": "elements"}
    wrapped = mlxdist.DistributedOptimizer(optim.SGD(0.1), **options)
    with pytest.raises(MismatchError, match=f"rank {world.size - 1}: .*=") as refusal:
        wrapped.init({"w": mx.zeros(3)})
    assert "ranks differ" in str(refusal.value)


def test_another_model(odd):
    tree = {"w": mx.zeros(3), "layers": [mx.zeros((2, 4 if odd else 2))]}
    with pytest.raises(MismatchError, match=r"layers\.0 float32\[2, 4\]"):
        mlxdist.DistributedOptimizer(optim.SGD(0.1)).init(tree)


@BOTH
def test_a_learning_rate_that_one_rank_changed(shard, transport, odd):
    ours = mlxdist.DistributedOptimizer(
        optim.SGD(0.1), shard=shard, transport=transport
    )
    own = {"w": mx.zeros(3)}
    ours.init(own)
    if odd:
        ours.learning_rate = 0.25
    with pytest.raises(MismatchError, match=r"learning_rate 0\.25"):
        ours.apply_gradients(own, own)


def test_states_that_differ_are_not_loaded(odd):
    ours = mlxdist.DistributedOptimizer(optim.Adam(0.1), shard=True)
    own = {"w": mx.zeros(5)}
    ours.init(own)
    full = ours.gather_state()
    if odd:
        full["w"]["m"] = full["w"]["m"] + 1
    with pytest.raises(MismatchError, match="a state with sha256"):
        ours.load_state(full)
    assert_same_bits(ours.gather_state()["w"]["m"], mx.zeros(5))


def test_a_comparison_meets_another_call(odd, world):
    call = world.barrier if odd else partial(world.identical, {"w": mx.zeros(3)})
    with pytest.raises(MismatchError, match=r"World\.identical"):
        call()


@pytest.mark.parametrize("color", [-1, None, 1.5])
def test_a_color_that_cannot_be(color, odd, world):
    with pytest.raises(MismatchError, match="color is"):
        world.split(color if odd else 0)


@pytest.mark.parametrize("package", ["mlxdist", "mlx"])
def test_another_version(package, odd, monkeypatch):
    if odd and package == "mlx":
        monkeypatch.setattr(prepare, "version", lambda name: "0.0.7")
    if odd and package == "mlxdist":
        monkeypatch.setattr(prepare, "__version__", "0.0.7")
    with pytest.raises(MismatchError, match=rf"{package} 0\.0\.7"):
        mlxdist.DistributedOptimizer(optim.SGD(0.1)).init({"w": mx.zeros(3)})
