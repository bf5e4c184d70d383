"""Master weights of 16-bit parameters: float32, or 24 bits."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

import mlxdist
from mlxdist.arrays import float24
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    cast_like,
    each_shard,
    each_transport,
    gradients,
    gradients_of_ranks,
    largest_difference,
    make,
    mean_of,
    optimizer_cases,
    to_float32,
)
from tests.support.examples import distributed_with_masters as distributed

pytestmark = pytest.mark.mpi

each_option = pytest.mark.parametrize("option", [mx.float32, "24bit"], ids=str)


def mixed_tree(dtype):
    """Four parameters in 16 bits, and one in float32."""
    key = mx.random.key(3)
    shapes = {"a": (9, 5), "b": (7,), "c": (4, 4), "d": (3,)}
    tree = {n: mx.random.normal(s, key=key).astype(dtype) for n, s in shapes.items()}
    return {**tree, "wide": mx.random.normal((6,), key=key)}


@pytest.mark.parametrize(
    ("name", "shard", "transport"),
    optimizer_cases(["AdamW", "SGD", "Lion", "Muon", "Adafactor", "MultiOptimizer"]),
)
@pytest.mark.parametrize(
    "dtype", [mx.bfloat16, pytest.param(mx.float16, marks=pytest.mark.long)], ids=str
)
def test_masters_train_as_one_process_in_float32(name, shard, transport, dtype, world):
    """The parameters are the masters, rounded."""
    optimizer = distributed(world, make(name), shard=shard, transport=transport)
    reference = make(name)
    tree = mixed_tree(dtype)
    twin = to_float32(tree)
    optimizer.init(tree)
    for step in range(4):
        every = gradients_of_ranks(tree, step, world.size)
        tree = optimizer.apply_gradients(every[world.rank], tree)
        mean = mean_of([to_float32(grads) for grads in every])
        twin = reference.apply_gradients(mean, twin)
        assert_same_bits(tree, cast_like(twin, tree))
    state = tree_flatten(optimizer.gather_state())
    arrays = [a for path, a in state if path.split(".")[-1] in ("m", "v", "master")]
    assert len(arrays) >= sum(leaf.dtype == dtype for _, leaf in tree_flatten(tree)) > 0
    assert {array.dtype for array in arrays} == {mx.float32}


@each_shard
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_masters_and_ema_are_kept_by_compiled_and_eager_updates(
    max_norm, compiled, shard, world, request
):
    if compiled:
        request.getfixturevalue("compiled_always")
    optimizer = distributed(
        world, ema_decay=0.5, shard=shard, max_norm=max_norm, bucket_size=2**20
    )
    reference = optim.AdamW(1e-2)
    tree = mixed_tree(mx.bfloat16)
    twin = averages = to_float32(tree)
    optimizer.init(tree)
    assert optimizer.describe().compiled == compiled
    for step in range(3):
        grads = gradients(tree, step, 0)
        tree = optimizer.apply_gradients(grads, tree)
        wide = to_float32(grads)
        if max_norm is not None:
            wide, _ = optim.clip_grad_norm(wide, max_norm)
        twin = reference.apply_gradients(wide, twin)
        averages = {path: 0.5 * a + 0.5 * twin[path] for path, a in averages.items()}
    assert largest_difference(tree, cast_like(twin, tree)) < 1e-2
    state = optimizer.gather_state()
    for path in ("a", "b", "c", "d"):
        assert largest_difference(state[path]["master"], twin[path]) < 1e-6
    for path, average in averages.items():
        assert largest_difference(state[path]["average"], average) < 1e-6
    assert "master" not in state["wide"]


@pytest.mark.parametrize("masters", [mx.float32, None], ids=str)
def test_masters_keep_steps_that_16_bits_round_away(masters, world):
    """A learning rate of 1e-3 is below half the spacing of bfloat16 just under 1."""
    tree = {"w": mx.ones(4, mx.bfloat16)}
    optimizer = distributed(world, optim.SGD(1e-3), shard=True, master_dtype=masters)
    optimizer.init(tree)
    for _ in range(10):
        tree = optimizer.apply_gradients({"w": mx.ones(4, mx.bfloat16)}, tree)
    assert (tree["w"][0].item() != 1.0) == (masters is not None)


@each_shard
@each_transport
def test_master_gets_a_mean_that_16_bits_can_not_hold(transport, shard, world):
    """bfloat16 has 1 and 1 + 2^-7, and nothing between them."""
    optimizer = distributed(world, optim.SGD(1.0), shard=shard, transport=transport)
    tree = {"w": mx.zeros(5, mx.bfloat16)}
    optimizer.init(tree)
    grads = {"w": mx.full((5,), 1 + world.rank / 128, mx.bfloat16)}
    optimizer.apply_gradients(grads, tree)
    mean = 1 + (world.size - 1) / 256
    assert optimizer.gather_state()["w"]["master"].tolist() == [-mean] * 5


def test_master_after_one_step_has_the_unrounded_learning_rate(world):
    """1e-3 is 0.00099945 in bfloat16."""
    tree = {"w": mx.ones(4, mx.bfloat16)}
    optimizer = distributed(world, optim.SGD(1e-3), shard=True)
    optimizer.init(tree)
    optimizer.apply_gradients({"w": mx.ones(4, mx.bfloat16)}, tree)
    master = optimizer.gather_state()["w"]["master"]
    assert master.tolist() == [mx.array(1.0 - 1e-3).item()] * 4


@each_shard
def test_master_of_a_parameter_that_the_user_replaced_is_made_anew(shard, world):
    optimizer = distributed(world, optim.SGD(0.5), shard=shard, check_every=0)
    ones = {"w": mx.ones(5, mx.bfloat16)}
    optimizer.init(ones)
    optimizer.apply_gradients(ones, ones)
    replaced = {"w": mx.full((5,), 8.0, mx.bfloat16)}
    tree = optimizer.apply_gradients(ones, replaced)
    assert tree["w"].tolist() == [7.5] * 5


@each_shard
@each_option
def test_masters_go_through_checkpoints(option, shard, world, shared_folder):
    def build(part):
        tree = mixed_tree(mx.bfloat16)
        optimizer = distributed(part, shard=shard, master_dtype=option)
        optimizer.init(tree)
        return tree, optimizer

    tree, optimizer = build(world)
    tree = apply_steps(optimizer, tree, range(3))
    mlxdist.save_checkpoint(shared_folder, 3, tree, optimizer)
    tree = apply_steps(optimizer, tree, range(3, 6))
    for part in (world, world.split(world.rank)):
        other, resumed = build(part)
        mlxdist.load_checkpoint(shared_folder, other, resumed)
        other = apply_steps(resumed, other, range(3, 6))
        assert_same_bits(other, tree)
        assert_same_bits(resumed.gather_state(), optimizer.gather_state())


def masters_of(optimizer, tree):
    """Return the masters of 24 bits, and the parameters that have none."""
    state = dict(tree_flatten(optimizer.gather_state()))
    corrections = {
        path.split(".")[-2]: array
        for path, array in state.items()
        if path.endswith(".correction")
    }
    return tree | {n: float24.join(tree[n], c) for n, c in corrections.items()}


@pytest.mark.parametrize(
    ("name", "shard", "transport"),
    optimizer_cases(["AdamW", "Lion", "Muon", "MultiOptimizer"]),
)
def test_masters_of_24_bits_train_as_one_process(name, shard, transport, world):
    """Each step is the one of a single optimizer on the masters, rounded."""
    optimizer = distributed(
        world, make(name), shard=shard, transport=transport, master_dtype="24bit"
    )
    reference = make(name)
    tree = mixed_tree(mx.bfloat16)
    optimizer.init(tree)
    for step in range(3):
        every = gradients_of_ranks(tree, step, world.size)
        twin = masters_of(optimizer, tree)
        tree = optimizer.apply_gradients(every[world.rank], tree)
        mean = mean_of([to_float32(grads) for grads in every])
        twin = reference.apply_gradients(mean, twin)
        masters = masters_of(optimizer, tree)
        assert largest_difference(masters, twin) < 2.0**-15
        assert largest_difference(tree, masters) < 2.0**-8
        changed = [n for n in tree if masters[n].dtype != tree[n].dtype]
        assert changed == ["a", "b", "c", "d"]


@each_shard
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_masters_of_24_bits_are_the_same_on_any_number_of_ranks(dtype, shard, world):
    tree = mixed_tree(dtype)
    results = []
    for part in (world, world.split(world.rank)):
        optimizer = distributed(
            part, shard=shard, master_dtype="24bit", ema_decay=0.5, max_norm=1.0
        )
        optimizer.init(tree)
        trained = apply_steps(optimizer, tree, range(4))
        results.append((trained, optimizer.gather_state()))
    assert_same_bits(*results)


def test_masters_of_24_bits_take_steps_below_their_spacing(world):
    """Below 1 the spacing is 2^-16: to nearest, no such step would move anything."""
    tree = {"w": mx.ones(512, mx.bfloat16)}
    optimizer = distributed(world, optim.SGD(1e-6), shard=True, master_dtype="24bit")
    optimizer.init(tree)
    for _ in range(300):
        tree = optimizer.apply_gradients({"w": mx.ones(512, mx.bfloat16)}, tree)
    moved = 1 - masters_of(optimizer, tree)["w"]
    assert mx.all(moved > 0).item()


@each_shard
@pytest.mark.parametrize("compiled", [False, True])
def test_masters_of_24_bits_cost_a_byte_for_each_parameter(
    compiled, shard, world, request
):
    if compiled:
        request.getfixturevalue("compiled_always")
    tree = {"w": mx.ones((32, 30), mx.bfloat16)}
    optimizer = distributed(world, shard=shard, master_dtype="24bit")
    optimizer.init(tree)
    total = sum(optimizer.describe().state_bytes_by_rank)
    assert total == 9 * 960 * (world.size if shard is False else 1)
    apply_steps(optimizer, tree, range(2))
    assert sum(optimizer.describe().state_bytes_by_rank) == total
