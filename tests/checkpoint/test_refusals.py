"""Checkpoints that are refused: on all ranks, by name, and nothing is changed."""

import os

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlxdist
from mlxdist import CheckpointError, MismatchError, load_checkpoint, save_checkpoint
from tests.support.checkpoints import Examples, make_run, train, zeros
from tests.support.examples import assert_same_bits

pytestmark = pytest.mark.mpi


def refused(world, error, match, call):
    """On all ranks alike."""
    with pytest.raises(error, match=match):
        call()
    world.barrier()


def test_a_drifted_rank_is_found_before_a_bad_checkpoint(world, shared_folder):
    own, ours = make_run(world)
    if world.size == 1:
        pytest.skip("one rank can't drift")
    if world.rank == world.size - 1:
        own = {**own, "two": own["two"] + 1}
    call = f"two.*rank {world.size - 1}.*from the last checkpoint"
    match = rf"(?s)save_checkpoint refused.*{call}"
    refused(
        world,
        MismatchError,
        match,
        lambda: save_checkpoint(shared_folder, 1, own, ours),
    )
    assert not list(shared_folder.iterdir())


def test_what_can_not_be_saved(world, shared_folder):
    own, ours = make_run(world)
    plain = optim.SGD(0.1)
    with pytest.raises(ValueError, match=r"mlxdist\.DistributedOptimizer\(optimizer\)"):
        save_checkpoint(shared_folder, 1, own, plain)

    def save(step=1, extra=None, **options):
        return lambda: save_checkpoint(shared_folder, step, own, ours, extra, **options)

    for call, match in (
        (save(-1), "step is -1"),
        (save(1.5), "step is 1.5"),
        (save(keep=0), "keep is 0"),
        (
            save(extra={"f": print}),
            r"extra\.f is a builtin.*Nothing is pickled",
        ),
        (save(extra={1: 2}), "has the key 1"),
        (save(extra={"$mlx": 2}), "begin with"),
        (save(extra=[np.array("text")]), r"extra\.0 is an array of"),
    ):
        refused(world, MismatchError, match, call)
    if world.size > 1:
        refused(world, MismatchError, "saved as step 0", save(world.rank))
        refused(world, MismatchError, "extra loss", save(extra={"loss": world.rank}))
        arrays = {"loss": mx.array(world.rank)}
        refused(world, MismatchError, "extra/loss with sum", save(extra=arrays))
        late = {"f": print} if world.rank else None
        refused(world, MismatchError, "rank 0: ready", save(extra=late))
    assert not list(shared_folder.iterdir())
    fresh = mlxdist.DistributedOptimizer(optim.SGD(0.1), world=world)
    refused(
        world,
        MismatchError,
        "init",
        lambda: save_checkpoint(shared_folder, 1, own, fresh),
    )


def test_a_checkpoint_of_something_else_changes_nothing(world, shared_folder):
    own, ours = make_run(world)
    own = train(own, ours, world, range(1))
    sampler = Examples(world).sampler
    save_checkpoint(shared_folder, 1, own, ours, sampler=sampler)
    before = ours.gather_state()
    tree = zeros(own)

    def load(tree=tree, optimizer=ours, **options):
        return lambda: load_checkpoint(shared_folder, tree, optimizer, **options)

    more = {**tree, "more": mx.zeros(3)}
    less = {k: v for k, v in tree.items() if k != "two"}
    wrong = {**tree, "two": mx.zeros((2, 1))}
    _, lion = make_run(world, "Lion")
    _, adam = make_run(world, "Adam")
    shuffled = mlxdist.ShardedSampler(101, world=world, seed=4)
    for call, match in (
        (load(more), "no parameter more, wanted float32"),
        (load(less), "it has two float32.2., the model not"),
        (load(wrong), r"parameter two is float32\[2\], wanted float32\[2, 1\]"),
        (load(optimizer=lion), "updated by mlx.*AdamW, now by mlx.*Lion"),
        (load(optimizer=adam), "now by mlx.*Adam$"),
        (load(sampler=shuffled), "seed=3, this sampler has seed=4"),
        (load(step=2), "(?s)none of step 2.*others, of step 1"),
        (load(step=-1), "none of step -1"),
    ):
        refused(world, CheckpointError, match, call)
    assert not any(mx.any(leaf != 0).item() for _, leaf in tree_flatten(tree))
    assert_same_bits(ours.gather_state(), before)
    call = load(sampler=sampler)
    call()
    assert_same_bits(tree, own)
    empty = shared_folder / "empty"
    refused(
        world,
        CheckpointError,
        "no checkpoint in",
        lambda: load_checkpoint(empty, tree, ours),
    )


DAMAGE = {
    "flipped bit": (lambda path: flip(path), "have another sha256"),
    "truncated": (lambda path: os.truncate(path, 100), "has 100 bytes, wanted"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "a link": (lambda path: to_link(path), "is a link"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
}


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def to_link(path):
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved").name)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.filterwarnings("ignore:passed over a checkpoint")
def test_a_damaged_file_is_named_and_the_last_good_one_taken(
    kind, world, shared_folder
):
    damage, told = DAMAGE[kind]
    own, ours = make_run(world)
    save_checkpoint(shared_folder, 1, own, ours)
    before = {"w": own}
    own = train(own, ours, world, range(1))
    path = save_checkpoint(shared_folder, 2, own, ours)
    name = f"rank-{world.size - 1:05}.safetensors"
    if world.is_root:
        damage(path / name)
    world.barrier()
    tree = zeros(own)
    with pytest.raises(CheckpointError, match=f"(?s){name}.*{told}.*of step 1"):
        load_checkpoint(shared_folder, tree, ours, step=2)
    assert not any(mx.any(leaf != 0).item() for _, leaf in tree_flatten(tree))
    loaded = load_checkpoint(shared_folder, tree, ours)
    assert loaded.step == 1
    assert len(loaded.skipped) == 1
    assert name in loaded.skipped[0]
    assert_same_bits({"w": tree}, before)


@pytest.mark.parametrize(
    "kind", ["edited", "truncated", "empty", "gone", "another step"]
)
@pytest.mark.filterwarnings("ignore:passed over a checkpoint")
def test_a_damaged_manifest_is_named(kind, world, shared_folder):
    own, ours = make_run(world)
    save_checkpoint(shared_folder, 1, own, ours)
    path = save_checkpoint(shared_folder, 2, own, ours) / "manifest.json"
    if world.is_root and kind == "edited":
        path.write_text(path.read_text().replace('"world_size": ', '"world_size": 1'))
    elif world.is_root and kind == "truncated":
        os.truncate(path, 1000)
    elif world.is_root and kind == "empty":
        os.truncate(path, 0)
    elif world.is_root and kind == "gone":
        path.unlink()
    elif world.is_root:
        path.parent.rename(path.parent.with_name("save-00002-step-00000003"))
    world.barrier()
    wanted = 3 if kind == "another step" else 2
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(shared_folder, own, ours, step=wanted)
    assert load_checkpoint(shared_folder, own, ours).step == 1


def test_only_damaged_ones_are_an_error_and_no_new_start(world, shared_folder):
    own, ours = make_run(world)
    path = save_checkpoint(shared_folder, 1, own, ours)
    if world.is_root:
        flip(path / "rank-00000.safetensors")
    world.barrier()
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        load_checkpoint(shared_folder, own, ours, missing_ok=True)
