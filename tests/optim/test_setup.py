"""init: the same parameters, state and settings on all ranks, or an error on all."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxdist import MismatchError, version
from mlxdist.optim.options import Options
from tests.support.examples import (
    Net,
    apply_steps,
    assert_same_bits,
    batch,
    distributed,
    each_shard,
    full_like,
    gradients,
    loss_and_gradients,
    parameters,
    update,
)

pytestmark = pytest.mark.mpi


def is_last(world):
    return world.rank == world.size - 1


# -- parameters


def test_init_of_a_model_gives_all_ranks_the_parameters_of_rank_0(world):
    mx.random.seed(100 + world.rank)
    model = Net()
    before = tree_map(lambda leaf: leaf, model.parameters())
    assert world.identical(model) == (world.size == 1)
    distributed(world, shard=True).init(model)
    assert world.identical(model)
    if world.is_root:
        assert_same_bits(model.parameters(), before)


@pytest.mark.mpi(min_size=2)
def test_init_of_a_tree_that_differs_is_refused_with_the_remedy(world):
    tree = {"w": mx.full((3,), float(world.rank))}
    optimizer = distributed(world)
    with pytest.raises(MismatchError, match=r"world\.broadcast\(parameters\)"):
        optimizer.init(tree)
    optimizer.init(world.broadcast(tree))


def test_init_of_what_cannot_be_trained_is_refused(world):
    with pytest.raises(MismatchError, match=r"w int32\[3\] can't be trained"):
        distributed(world).init({"w": mx.zeros(3, mx.int32)})
    with pytest.raises(ValueError, match=r"x is a float, not an mx\.array"):
        distributed(world).init({"x": 1.0})
    with pytest.raises(ValueError, match="a parameter is called 'step'"):
        distributed(world).init({"step": mx.zeros(3)})


# -- ranks that differ


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("most", "last", "message"),
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
            r"optimizers\[1\]: learning_rate",
        ),
    ],
    ids=["class", "learning_rate", "betas", "schedule", "part of a MultiOptimizer"],
)
def test_init_with_another_optimizer_on_one_rank_is_refused(most, last, message, world):
    optimizer = distributed(world, last() if is_last(world) else most())
    with pytest.raises(MismatchError, match=message):
        optimizer.init({"w": mx.zeros(3)})


OTHER_OPTIONS = {
    "shard": "tensors",
    "transport": "host",
    "bucket_size": 77,
    "reduce_dtype": mx.bfloat16,
    "wire_dtype": mx.bfloat16,
    "mean_dtype": mx.bfloat16,
    "max_norm": 1.0,
    "skip_nonfinite": True,
    "check_finite": False,
    "check_every": 7,
    "master_dtype": mx.float32,
    "loss_scale": 2.0,
    "accumulate": 2,
    "accumulate_sharded": True,
    "ema_decay": 0.5,
    "sync_buffers": "mean",
    "reproducible": True,
    "overlap_forward": False,
    "state_dtype": "int8",
    "float32_state": ("norm",),
}


def test_other_options_are_all_options():
    names = {"strategy" if n == "shard" else n for n in OTHER_OPTIONS}
    assert names == set(Options.__dataclass_fields__)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_init_with_one_other_option_on_one_rank_is_refused(name, world):
    """It differs in nothing else, except for what follows from the option."""
    needed = {
        "wire_dtype": {"transport": "host"},
        "mean_dtype": {"shard": True},
        "accumulate_sharded": {"shard": True},
    }
    options = dict(needed.get(name, {}))
    if is_last(world):
        options[name] = OTHER_OPTIONS[name]
    line = "strategy" if name == "shard" else name
    only = rf"\n  rank {world.size - 1}: {line} = [^;]*(; transport in use = \w+)?$"
    optimizer = distributed(world, **options)
    with pytest.raises(MismatchError, match=only) as refusal:
        optimizer.init({"w": mx.zeros(3)})
    assert "ranks differ" in str(refusal.value)


@pytest.mark.mpi(min_size=2)
def test_init_of_another_model_on_one_rank_is_refused(world):
    tree = {"w": mx.zeros(3), "layers": [mx.zeros((2, 4 if is_last(world) else 2))]}
    with pytest.raises(MismatchError, match=r"layers\.0 float32\[2, 4\]"):
        distributed(world).init(tree)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("package", ["mlxdist", "mlx"])
def test_init_with_another_version_on_one_rank_is_refused(package, world, monkeypatch):
    if is_last(world) and package == "mlx":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.7")
    if is_last(world) and package == "mlxdist":
        monkeypatch.setattr(version, "__version__", "0.0.7")
    with pytest.raises(MismatchError, match=rf"{package} 0\.0\.7"):
        distributed(world).init({"w": mx.zeros(3)})


@pytest.mark.mpi(min_size=2)
def test_init_after_some_ranks_made_other_optimizers(world):
    """On a split world that the other ranks are not in, or never initialized."""
    part = world.split(int(is_last(world)))
    if is_last(world):
        distributed(world)
        other = distributed(part)
        other.init({"w": mx.zeros(3)})
    optimizer = distributed(world)
    optimizer.init({"w": mx.zeros(3)})
    optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.zeros(3)})
    names = world.control.all_gather_bytes(optimizer.pipelines.name.encode())
    assert len(set(names)) == 1


@pytest.mark.mpi(min_size=2)
def test_init_of_an_optimizer_on_one_rank_only_is_refused_everywhere(world):
    optimizer = distributed(world)
    tree = {"w": mx.zeros(3)}
    call = partial(optimizer.init, tree) if world.is_root else world.barrier
    with pytest.raises(MismatchError, match="the same calls in the same order"):
        call()
    optimizer.init(tree)


# -- state from before


@each_shard
@pytest.mark.parametrize("several", [False, True])
def test_init_of_an_optimizer_that_has_steps_shares_its_state(several, shard, world):
    """Rank 0's state on every rank: a state may be loaded before it is wrapped."""
    tree = parameters()
    inner = optim.AdamW(1e-2)
    if several:
        by_shape = [lambda path, x: x.ndim == 2]
        inner = optim.MultiOptimizer([optim.AdamW(1e-2), optim.SGD(0.1)], by_shape)
    inner.init(tree)
    if world.is_root:
        inner.apply_gradients(gradients(tree, 0, 0), tree)
        mx.eval(inner.state)
    before = dict(tree_flatten(inner.state))
    optimizer = distributed(world, inner, shard=shard)
    optimizer.init(tree)
    assert optimizer.step.item() == 1
    state = optimizer.gather_state()
    assert world.identical(state)
    if world.is_root:
        after = dict(tree_flatten(state))
        assert after.keys() == before.keys()
        assert all(mx.array_equal(after[path], before[path]) for path in before)
        moments = [leaf for path, leaf in after.items() if path.endswith(".m")]
        assert any(mx.any(leaf != 0) for leaf in moments)


@each_shard
def test_init_again_after_unfreezing_keeps_the_state(shard, world):
    model = Net()
    optimizer = distributed(world, shard=shard)
    optimizer.init(model)
    update(model, optimizer, *batch(0, 4))
    before = optimizer.gather_state()
    model.frozen.unfreeze()
    _, grads = loss_and_gradients(model, *batch(0, 4))
    with pytest.raises(MismatchError, match=r"frozen.*init\(model\) again"):
        optimizer.update(model, grads)
    optimizer.init(model)
    after = optimizer.gather_state()
    assert_same_bits(after["head"], before["head"])
    assert mx.any(before["head"]["weight"]["m"] != 0)
    assert optimizer.step.item() == 1
    optimizer.update(model, grads)
    assert world.identical(model)


def tree_with(size):
    """Twelve matrices, so that each rank owns some of them, and a vector."""
    return {f"w{i}": mx.ones((4, 4)) for i in range(12)} | {"b": mx.ones(size)}


@each_shard
def test_init_again_with_another_shape_trains_on(shard, world):
    optimizer = distributed(world, optim.Adam(0.1), shard=shard)
    optimizer.init(tree_with(6))
    apply_steps(optimizer, tree_with(6), range(1))
    tree = tree_with(8)
    optimizer.init(tree)
    assert optimizer.gather_state()["b"]["m"].tolist() == [0.0] * 8
    assert optimizer.step.item() == 1
    tree = optimizer.apply_gradients(full_like(tree, 1), tree)
    assert tree["b"].shape == (8,)
    assert world.identical(tree)


@each_shard
def test_init_again_with_another_shape_keeps_the_state_of_the_rest(shard, world):
    optimizer = distributed(world, optim.Adam(0.1), shard=shard)
    optimizer.init(tree_with(6))
    apply_steps(optimizer, tree_with(6), range(1))
    before = optimizer.gather_state()
    optimizer.init(tree_with(8))
    after = optimizer.gather_state()
    for name in tree_with(8).keys() - {"b"}:
        assert_same_bits(after[name], before[name])


# -- state, and the order of the parameters


@pytest.mark.mpi(min_size=2)
def test_init_with_another_scalar_of_state_on_one_rank_is_refused(world):
    inner = optim.SGD(0.5)
    inner.state["extra"] = mx.zeros(2 if is_last(world) else 3)
    with pytest.raises(MismatchError, match=r"extra is mlx.core.float32\[2\]"):
        distributed(world, inner).init({"w": mx.ones(3)})


def test_parameters_in_another_order_on_one_rank_train_as_in_that_of_rank_0(world):
    names = ["a", "b", "c"]
    tree = {name: mx.zeros(3) for name in (names[::-1] if is_last(world) else names)}
    optimizer = distributed(world, optim.SGD(1.0), bucket_size=12)
    optimizer.init(tree)
    grads = {name: mx.full((3,), float(names.index(name))) for name in tree}
    stepped = optimizer.apply_gradients(grads, tree)
    assert {name: stepped[name].tolist() for name in names} == {
        name: [-float(index)] * 3 for index, name in enumerate(names)
    }


def test_init_gives_all_ranks_the_numbers_in_rank_0s_state(world):
    inner = optim.SGD(0.5)
    inner.state["count"] = world.rank + 5
    distributed(world, inner).init({"w": mx.ones(3)})
    assert inner.state["count"] == 5
