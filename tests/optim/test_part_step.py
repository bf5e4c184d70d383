"""Large tensors stepped in parts: the same bits, in the memory of parts."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.arrays import device
from mlxdist.arrays.in_place import InPlace
from mlxdist.arrays.numpy_view import address
from tests.support.compiled import assert_as_eager
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_shard,
)

INNER = {
    "AdamW": lambda: optim.AdamW(lambda step: 1e-2 / (1 + step), weight_decay=0.1),
    "AdaDelta": lambda: optim.AdaDelta(1e-2),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9),
    "SGD without state": lambda: optim.SGD(1e-2),
}
MIB = 2**20

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.usefixtures("compiled_always", "small_parts"),
]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(device, "part_size", lambda: 64)


def tree_of(seed, dtype=mx.float32):
    """One tensor of many parts, one of less than two."""
    key = mx.random.key(seed)
    return {
        name: mx.random.randint(-8, 8, shape, key=key).astype(dtype)
        for name, shape in {"large": (53, 61), "small": (3, 5)}.items()
    }


@each_shard
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_step_in_parts_gives_the_bits_of_mlx(name, shard, dtype, world):
    optimizer, reference = distributed(world, INNER[name](), shard=shard), INNER[name]()
    tree = twin = tree_of(0, dtype)
    optimizer.init(tree)
    reference.init(twin)
    for step in range(1, 4):
        grads = tree_of(step, dtype)
        tree = optimizer.apply_gradients(grads, tree)
        twin = reference.apply_gradients(grads, twin)
    assert_as_eager(tree, twin, dtype)
    assert_as_eager(optimizer.gather_state(), reference.state, dtype)


def test_step_in_parts_with_masters_averages_and_clipping_has_the_bits_of_a_whole_one(
    monkeypatch, world
):
    trees = []
    for size in (64, 2**20):
        monkeypatch.setattr(device, "part_size", lambda size=size: size)
        optimizer = distributed(
            world, master_dtype=mx.float32, ema_decay=0.9, max_norm=1.0
        )
        tree = tree_of(0, mx.bfloat16)
        optimizer.init(tree)
        trees.append([apply_steps(optimizer, tree, range(3)), optimizer.gather_state()])
    assert_same_bits(*trees)


@each_shard
def test_step_in_parts_changes_no_state_that_a_user_has(shard, world):
    optimizer = distributed(world, shard=shard)
    tree = tree_of(0)
    optimizer.init(tree)
    tree = apply_steps(optimizer, tree, [1])
    before = optimizer.state["large"]["m"] if "large" in optimizer.state else None
    view = None if before is None else optimizer.state["large"]["v"].reshape(-1)[:200]
    copies = [None if x is None else mx.array(x.tolist()) for x in (before, view)]
    apply_steps(optimizer, tree, [2])
    for kept, copy in zip((before, view), copies, strict=True):
        assert kept is None or mx.array_equal(kept, copy)


@pytest.mark.parametrize("shard", [False, "elements"])
def test_step_in_parts_writes_the_state_in_place(shard, world, monkeypatch):
    monkeypatch.setattr(device, "part_size", lambda: 2**14)
    optimizer = distributed(world, shard=shard)
    tree = {"large": mx.zeros((1024, 1031))}
    optimizer.init(tree)
    whole = tree["large"].nbytes
    share = whole // (world.size if shard else 1)
    for step in range(1, 3):
        gradient = {"large": mx.full((1024, 1031), float(step))}
        mx.eval(tree, optimizer.state, gradient)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        tree = optimizer.apply_gradients(gradient, tree)
        mx.eval(tree)
    above = mx.get_peak_memory() - before
    # New values in the memory of the mean, and then next to the whole parameter.
    # The native transport has a sum next to its mean.
    gathered = whole if world.size > 1 else 0
    assert above <= share + gathered + 0.5 * MIB


@pytest.mark.parametrize("keeps", [False, True])
def test_update_of_a_model_gathers_into_the_memory_of_its_parameter(
    keeps, world, monkeypatch
):
    monkeypatch.setattr(device, "part_size", lambda: 2**14)
    model, optimizer = nn.Module(), distributed(world, shard="elements")
    model.large = mx.zeros((1024, 1031))
    optimizer.init(model)
    for step in range(1, 4):
        gradient = {"large": mx.full((1024, 1031), float(step))}
        kept = model.large if keeps else None
        mx.eval(model.large, optimizer.state, gradient)
        before = float(model.large.sum())
        mx.clear_cache()
        mx.reset_peak_memory()
        active = mx.get_active_memory()
        optimizer.update(model, gradient)
        mx.eval(model.large)
        above = mx.get_peak_memory() - active
        assert mx.all(model.large == model.large[0, 0])
        assert kept is None or float(kept.sum()) == before
    share = model.large.nbytes // world.size if world.size > 1 else 0
    copied = model.large.nbytes if keeps else 0
    assert above <= share + copied + 0.5 * MIB


@pytest.mark.parametrize("shard", [False, "elements"])
def test_update_of_a_model_leaves_a_large_parameter_where_it_is(
    shard, world, monkeypatch
):
    """One that moved would leave a gap in memory, which smaller arrays break up."""
    monkeypatch.setattr(device, "part_size", lambda: 2**14)
    model, optimizer = nn.Module(), distributed(world, shard=shard)
    model.large = mx.zeros((1024, 1031))
    optimizer.init(model)
    addresses = set()
    for step in range(1, 4):
        optimizer.update(model, {"large": mx.full((1024, 1031), float(step))})
        addresses.add(address(model.large))
    assert len(addresses) == 1


def test_minimize_of_a_tree_holds_no_gradient_beside_new_values(world, monkeypatch):
    monkeypatch.setattr(device, "part_size", lambda: 2**14)
    tree, optimizer = {"large": mx.zeros((1024, 1031))}, distributed(world)
    optimizer.init(tree)
    row = mx.ones(1031)
    mx.eval(tree, optimizer.state, row)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    optimizer.minimize(lambda tree: (tree["large"] @ row).sum(), tree)
    above = mx.get_peak_memory() - before
    # With other ranks there is a mean, too, and the native transport's sum.
    arrays = 1 if world.size == 1 else 3
    assert above <= arrays * tree["large"].nbytes + 0.5 * MIB


def test_step_that_makes_state_of_another_dtype_is_taken_whole(world):
    optimizer, reference = distributed(world, shard=False), optim.AdamW(1e-2)
    tree = twin = tree_of(0)
    optimizer.init(tree)
    reference.init(twin)
    for inner in (optimizer, reference):
        inner.state["large"]["m"] = inner.state["large"]["m"].astype(mx.bfloat16)
    tree = optimizer.apply_gradients(tree_of(1), tree)
    twin = reference.apply_gradients(tree_of(1), twin)
    assert_as_eager(tree, twin)
    assert_as_eager(optimizer.state["large"], reference.state["large"])


def test_step_after_an_error_among_the_parts_is_refused(world, monkeypatch):
    optimizer = distributed(world, shard="elements")
    tree = tree_of(0)
    optimizer.init(tree)
    write, left = InPlace.write, [5]

    def fails(self, start, part):
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError("no memory for a part")
        write(self, start, part)

    monkeypatch.setattr(InPlace, "write", fails)
    with pytest.raises(MemoryError):
        apply_steps(optimizer, tree, [1])
    with pytest.raises(ValueError, match="some parameters are of that step"):
        apply_steps(optimizer, tree, [1])


@pytest.mark.parametrize("shard", [False, "elements"])
def test_step_broken_off_in_parts_is_forgotten_once_state_is_loaded(
    shard, world, monkeypatch, shared_folder
):
    optimizer, tree = distributed(world, shard=shard), tree_of(0)
    optimizer.init(tree)
    mlxdist.save_checkpoint(shared_folder, 1, tree, optimizer)
    before = [tree, optimizer.gather_state()]
    for method in ("write", "__init__"):  # after a part, and before the first one
        with monkeypatch.context() as patched:
            patched.setattr(InPlace, method, no_memory)
            with pytest.raises(MemoryError):
                optimizer.apply_gradients(tree_of(1), tree)
        if method == "write":
            with pytest.raises(mlxdist.MismatchError, match="some parameters are of"):
                optimizer.apply_gradients(tree_of(1), tree)
            mlxdist.load_checkpoint(shared_folder, tree, optimizer)
            assert_same_bits([tree, optimizer.gather_state()], before)
    tree = optimizer.apply_gradients(tree_of(1), tree)
    assert optimizer.step.item() == 1


def no_memory(*arguments):
    raise MemoryError
