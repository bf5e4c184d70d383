"""`save_checkpoint` and `load_checkpoint` on N ranks: what comes back."""

import itertools
import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

import mlxdist
from mlxdist import load_checkpoint, save_checkpoint
from tests.support.checkpoints import Examples, gather_sorted, make_run, train, zeros
from tests.support.examples import (
    CLASSES,
    Net,
    assert_same_bits,
    batch,
    loss,
    shard_modes,
)

pytestmark = pytest.mark.mpi


def cases():
    """Return every class and mode; without --long each class in one, AdamW in all."""
    for index, name in enumerate(CLASSES):
        modes = shard_modes(name)
        for shard in modes:
            fast = name == "AdamW" or shard == modes[index % len(modes)]
            marks = () if fast else pytest.mark.long
            yield pytest.param(name, shard, id=f"{name}-{shard}", marks=marks)


@pytest.mark.parametrize(("name", "shard"), [*cases()])
def test_load_resumes_with_the_bits_of_an_uninterrupted_run(
    name, shard, world, shared_folder
):
    params, optimizer = make_run(world, name, shard)
    params = train(params, optimizer, world, range(3))
    save_checkpoint(shared_folder, 3, params, optimizer)
    params = train(params, optimizer, world, range(3, 6))

    resumed, other = make_run(world, name, shard, bucket_size=1000)
    resumed = zeros(resumed)
    loaded = load_checkpoint(shared_folder, resumed, other)
    assert loaded.step == 3
    assert other.step.item() == 3
    resumed = train(resumed, other, world, range(3, 6))
    assert_same_bits(resumed, params)
    assert_same_bits(other.gather_state(), optimizer.gather_state())


@pytest.mark.parametrize(
    "name",
    [
        "AdamW",
        "MultiOptimizer",
        pytest.param("SGD", marks=pytest.mark.long),
        pytest.param("Adafactor", marks=pytest.mark.long),
    ],
)
def test_load_on_any_number_of_ranks_and_shard_mode_gives_the_same_bits(
    name, world, shared_folder
):
    """1 <-> 2 <-> 3 <-> 4, each mode to each mode: the same bits."""
    params, optimizer = make_run(world, name, False)
    params = train(params, optimizer, world, range(2))
    full = optimizer.gather_state()
    modes = shard_modes(name)
    ranks = range(1, world.size + 1)
    for step, (saving, loading) in enumerate(itertools.product(ranks, ranks)):
        before, after = modes[step % len(modes)], modes[(step // 2 + 1) % len(modes)]
        # The other ranks do the same among themselves, in a folder of their own.
        part = world.split(int(world.rank >= saving))
        folder = shared_folder / f"{step}-{int(world.rank < saving)}"
        _, writer = make_run(part, name, before)
        writer.load_state(full)
        save_checkpoint(folder, step, params, writer)
        world.barrier()
        part = world.split(int(world.rank >= loading))
        tree, reader = make_run(part, name, after, bucket_size=700)
        tree = zeros(tree)
        load_checkpoint(shared_folder / f"{step}-1", tree, reader)
        assert_same_bits(tree, params)
        assert_same_bits(reader.gather_state(), full)


def test_save_writes_each_byte_once_in_files_of_equal_size(world, shared_folder):
    params, optimizer = make_run(world, "AdamW", "elements", bucket_size=2**20)
    params = {"w": mx.zeros((100, 999)), "v": mx.zeros(77)}
    optimizer.init(params)
    path = save_checkpoint(shared_folder, 1, params, optimizer)
    sizes = [file.stat().st_size for file in path.glob("rank-*.safetensors")]
    assert len(sizes) == world.size
    nbytes = 3 * 4 * (99_900 + 77)
    assert nbytes < sum(sizes) < nbytes + 2000 * world.size
    assert max(sizes) - min(sizes) < 2000
    arrays = {}
    for file in path.glob("rank-*.safetensors"):
        loaded = mx.load(str(file))
        assert not arrays.keys() & loaded.keys()
        arrays |= loaded
    assert sum(array.size for array in arrays.values()) == nbytes // 4 + 2
    world.barrier()


def test_load_resumes_the_sampler_on_another_number_of_ranks(world, shared_folder):
    params, optimizer = make_run(world)
    data = Examples(world)
    before = gather_sorted(world, data.take(3))
    save_checkpoint(shared_folder, 3, params, optimizer, sampler=data.sampler)
    # All ranks but the last resume; the last one does so alone.
    part = world.split(int(world.rank >= max(1, world.size - 1)))
    tree, other = make_run(part)
    data = Examples(part)
    load_checkpoint(shared_folder, tree, other, sampler=data.sampler)
    rest = gather_sorted(part, data.take(1000))
    assert sorted(before + rest) == list(range(101))


def test_load_restores_extra_counters_and_random_keys(world, shared_folder):
    mx.random.seed(10 + world.rank)
    params, optimizer = make_run(world, skip_nonfinite=True)
    bad = tree_map(lambda leaf: leaf * float("nan"), params)
    optimizer.apply_gradients(bad, params)
    extra = {
        "none": None,
        "numbers": [1, -2.5, True, 2**70, float("inf")],
        "pair": (1, ("a",)),
        "mlx": mx.arange(5, dtype=mx.bfloat16),
        "numpy": np.arange(6, dtype=np.float64).reshape(2, 3),
        "empty": {"list": [], "array": mx.zeros((0, 2))},
        "scalar": np.array(7, np.int64),
    }
    save_checkpoint(shared_folder, 4, params, optimizer, extra)
    drawn = mx.random.normal((4,)).tolist()
    mx.random.seed(0)
    tree, other = make_run(world, skip_nonfinite=True)
    loaded = load_checkpoint(shared_folder, tree, other)
    assert mx.random.normal((4,)).tolist() == drawn
    assert other.skipped == 1
    restored = loaded.extra
    for name in ("none", "numbers", "pair"):
        assert restored[name] == extra[name]
        assert type(restored[name]) is type(extra[name])
    assert_same_bits({"a": restored["mlx"]}, {"a": extra["mlx"]})
    assert restored["empty"]["list"] == []
    assert restored["empty"]["array"].shape == (0, 2)
    for name in ("numpy", "scalar"):
        assert restored[name].dtype == extra[name].dtype
        np.testing.assert_array_equal(restored[name], extra[name], strict=True)


def test_load_gives_new_ranks_random_keys_of_their_own(world, shared_folder):
    part = world.split(world.rank)
    params, optimizer = make_run(part)
    save_checkpoint(shared_folder / str(world.rank), 1, params, optimizer)
    world.barrier()
    tree, other = make_run(world)
    load_checkpoint(shared_folder / "0", tree, other)
    drawn = gather_sorted(world, [mx.random.uniform().item()])
    assert len(set(drawn)) == world.size


def test_load_restores_frozen_layers_and_root_buffers_of_a_module(world, shared_folder):
    class WithBuffer(Net):
        def __init__(self):
            super().__init__()
            self.batch_norm = nn.BatchNorm(6)

    mx.random.seed(3)
    model = WithBuffer()
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-2), shard=True, world=world)
    optimizer.init(model)
    x, y = batch(0, 4)
    _, grads = nn.value_and_grad(model, loss)(model, x, y)
    optimizer.update(model, grads)
    # Running statistics differ, since each rank has its own batches.
    model.batch_norm.running_mean = mx.full((6,), float(world.rank))
    path = save_checkpoint(shared_folder, 1, model, optimizer)
    if world.size > 1 and world.is_root:
        manifest = json.loads((path / "manifest.json").read_text())
        (mean,) = (a for a in manifest["arrays"] if a["path"].endswith("running_mean"))
        assert [piece[2] for piece in mean["pieces"]] == [0]
    mx.random.seed(4)
    other = WithBuffer()
    resumed = mlxdist.DistributedOptimizer(optim.AdamW(1e-2), shard=True, world=world)
    load_checkpoint(shared_folder, other, resumed)  # initializes it
    model.batch_norm.running_mean = mx.zeros((6,))  # rank 0's
    assert_same_bits(other.parameters(), model.parameters())
    assert_same_bits(resumed.gather_state(), optimizer.gather_state())
    assert not resumed.state["frozen"]
    _, grads = nn.value_and_grad(other, loss)(other, x, y)
    resumed.update(other, grads)


def test_load_restores_state_of_one_number_a_slice(world, shared_folder):
    """The last rank has one element, the others two."""

    class Counting(optim.Optimizer):
        elementwise = True

        def init_single(self, parameter, state):
            state["count"] = mx.zeros(1)

        def apply_single(self, gradient, parameter, state):
            state["count"] = state["count"] + 1
            return parameter - gradient

    def make_counting_run():
        params = {"w": mx.zeros(2 * world.size - 1)}
        optimizer = mlxdist.DistributedOptimizer(
            Counting(), shard="elements", world=world
        )
        optimizer.init(params)
        return params, optimizer

    params, optimizer = make_counting_run()
    params = optimizer.apply_gradients(params, params)
    save_checkpoint(shared_folder, 1, params, optimizer)
    restored, other = make_counting_run()
    load_checkpoint(shared_folder, restored, other)
    assert other.state["w"]["count"].tolist() == [1]


def test_load_without_an_optimizer_loads_the_model(world, shared_folder):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)
    tree = zeros(params)
    assert load_checkpoint(shared_folder, tree).step == 1
    assert_same_bits(tree, params)


def test_save_keeps_the_newest_and_updates_latest(world, shared_folder):
    params, optimizer = make_run(world)
    for step in (1, 2, 2, 3):
        save_checkpoint(shared_folder, step, params, optimizer, {"step": step}, keep=3)
    world.barrier()
    names = sorted(path.name for path in shared_folder.iterdir())
    assert names == [
        "latest",
        "save-00002-step-00000002",
        "save-00003-step-00000002",
        "save-00004-step-00000003",
    ]
    assert (shared_folder / "latest").read_text() == "save-00004-step-00000003\n"
    assert (
        load_checkpoint(shared_folder, params, optimizer, step=2).path.name == names[2]
    )
    # Back to step 2: the newest checkpoint is the one saved last.
    world.barrier()
    save_checkpoint(shared_folder, 2, params, optimizer, {"step": "again"}, keep=3)
    loaded = load_checkpoint(shared_folder, params, optimizer)
    assert (loaded.step, loaded.extra) == (2, {"step": "again"})


def test_save_removes_what_a_killed_save_left(world, shared_folder):
    params, optimizer = make_run(world)
    left = shared_folder / ".save-00001-step-00000007.saving-0123456789abcdef"
    if world.is_root:
        left.mkdir()
        (left / "rank-00000.safetensors").write_bytes(b"half of a file")
    world.barrier()
    assert load_checkpoint(shared_folder, params, optimizer, missing_ok=True) is None
    save_checkpoint(shared_folder, 8, params, optimizer)
    assert not left.exists()
    assert load_checkpoint(shared_folder, params, optimizer).step == 8


@pytest.mark.mpi
def test_init_save_and_load_leave_no_memory_in_mlx_cache(world, shared_folder):
    """On Metal the cache counts as used memory, and no step asks for these sizes."""
    tree, optimizer = make_run(world)
    cached = [mx.get_cache_memory()]
    tree = train(tree, optimizer, world, range(2))
    for background in (False, True):
        mlxdist.save_checkpoint(
            shared_folder, 2 + background, tree, optimizer, background=background
        )
        cached.append(mx.get_cache_memory())
    mlxdist.load_checkpoint(shared_folder, tree, optimizer)
    cached.append(mx.get_cache_memory())
    assert cached == 4 * [0]
