"""Checkpoints that can't be loaded: named on all ranks, and nothing is changed."""

import os
from functools import partial

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import mlxdist
from mlxdist import CheckpointError, MismatchError, load_checkpoint, save_checkpoint
from tests.support.checkpoints import (
    Examples,
    assert_all_raise,
    make_run,
    train,
    zeros,
)
from tests.support.examples import assert_same_bits

pytestmark = pytest.mark.mpi


def test_load_refuses_another_model_optimizer_or_sampler(world, shared_folder):
    params, optimizer = make_run(world)
    params = train(params, optimizer, world, range(1))
    sampler = Examples(world).sampler
    save_checkpoint(shared_folder, 1, params, optimizer, sampler=sampler)
    before = optimizer.gather_state()
    tree = zeros(params)

    def load(tree=tree, optimizer=optimizer, **options):
        return lambda: load_checkpoint(shared_folder, tree, optimizer, **options)

    more = {**tree, "more": mx.zeros(3)}
    less = {k: v for k, v in tree.items() if k != "two"}
    wrong = {**tree, "two": mx.zeros((2, 1))}
    _, lion = make_run(world, "Lion")
    _, adam = make_run(world, "Adam")
    shuffled = mlxdist.ShardedSampler(101, world=world, seed=4)
    for call, match in (
        (load(more), "no parameter more, wanted float32"),
        (load(less), "it has parameter two float32.2., which the model lacks"),
        (load(wrong), r"parameter two is float32\[2\], wanted float32\[2, 1\]"),
        (load(optimizer=lion), "updated by mlx.*AdamW, now by mlx.*Lion"),
        (load(optimizer=adam), "now by mlx.*Adam$"),
        (load(sampler=shuffled), "seed=3, this sampler has seed=4"),
        (load(step=2), "(?s)none of step 2.*others, of step 1"),
        (load(step=-1), "none of step -1"),
    ):
        assert_all_raise(world, CheckpointError, match, call)
    assert not any(mx.any(leaf != 0).item() for _, leaf in tree_flatten(tree))
    assert_same_bits(optimizer.gather_state(), before)
    call = load(sampler=sampler)
    call()
    assert_same_bits(tree, params)
    empty = shared_folder / "empty"
    assert_all_raise(
        world,
        CheckpointError,
        "no checkpoint in",
        lambda: load_checkpoint(empty, tree, optimizer),
    )


def flip_bit(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def replace_by_link(path):
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved").name)


DAMAGE = {
    "flipped bit": (flip_bit, "the sha256 of bytes .* differs"),
    "truncated": (lambda path: os.truncate(path, 100), "has 100 bytes, wanted"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "a link": (replace_by_link, "is a link"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
def test_load_names_a_damaged_file_and_takes_the_newest_good_checkpoint(
    kind, world, shared_folder
):
    damage, message = DAMAGE[kind]
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)
    before = {"w": params}
    params = train(params, optimizer, world, range(1))
    path = save_checkpoint(shared_folder, 2, params, optimizer)
    name = f"rank-{world.size - 1:05}.safetensors"
    if world.is_root:
        damage(path / name)
    world.barrier()
    tree = zeros(params)
    with pytest.raises(CheckpointError, match=f"(?s){name}.*{message}.*of step 1"):
        load_checkpoint(shared_folder, tree, optimizer, step=2)
    assert not any(mx.any(leaf != 0).item() for _, leaf in tree_flatten(tree))
    loaded = load_checkpoint(shared_folder, tree, optimizer)
    assert loaded.step == 1
    assert len(loaded.skipped) == 1
    assert name in loaded.skipped[0]
    assert_same_bits({"w": tree}, before)


@pytest.mark.parametrize(
    "kind", ["edited", "truncated", "empty", "gone", "another step"]
)
@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
def test_load_names_a_damaged_manifest(kind, world, shared_folder):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)
    path = save_checkpoint(shared_folder, 2, params, optimizer) / "manifest.json"
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
        load_checkpoint(shared_folder, params, optimizer, step=wanted)
    assert load_checkpoint(shared_folder, params, optimizer).step == 1


def test_load_with_missing_ok_raises_if_all_checkpoints_are_damaged(
    world, shared_folder
):
    params, optimizer = make_run(world)
    path = save_checkpoint(shared_folder, 1, params, optimizer)
    if world.is_root:
        flip_bit(path / "rank-00000.safetensors")
    world.barrier()
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        load_checkpoint(shared_folder, params, optimizer, missing_ok=True)


class Replaced(Examples):
    """A sampler; while it is checked, another job replaces the checkpoint by its own.

    Args:
        times: how often.
    """

    def __init__(self, world, folder, times):
        super().__init__(world)
        self._is_root, self._folder, self._times = world.is_root, folder, times

    def state_dict(self):
        if self._is_root and self._times:
            (path,) = self._folder.glob("save-*")
            serial = int(path.name.split("-")[1])
            path.rename(self._folder / f"save-{serial + 1:05}-step-00000001")
            self._times -= 1
        return self.sampler.state_dict()

    def load_state_dict(self, state):
        self.sampler.load_state_dict(state)


@pytest.mark.parametrize("times", [1, 5, 1000])
def test_load_while_another_job_replaces_the_checkpoint_loads_the_new_one(
    times, world, shared_folder
):
    """With keep=1 the only checkpoint may go while it is read."""
    params, optimizer = make_run(world)
    params = train(params, optimizer, world, range(2))
    plain = Examples(world).sampler
    save_checkpoint(shared_folder, 1, params, optimizer, sampler=plain)
    sampler = Replaced(world, shared_folder, times)
    tree = zeros(params)
    load = partial(load_checkpoint, shared_folder, tree, optimizer, sampler=sampler)
    if times == 1000:
        assert_all_raise(world, CheckpointError, "no good checkpoint", load)
        assert_same_bits(tree, zeros(params))
    else:
        assert load().path.name > "save-00001-step-00000001"
        assert_same_bits(tree, params)


@pytest.mark.mpi(min_size=2)
def test_load_of_other_arguments_on_one_rank_is_refused(world, shared_folder):
    params, optimizer = make_run(world)
    for step in (0, 1):
        save_checkpoint(shared_folder, step, params, optimizer)
    is_root = world.rank == 0
    for options, match in (
        ({"step": int(is_root)}, "rank 0: step 1"),
        ({"missing_ok": is_root}, "rank 0: missing_ok True"),
    ):
        call = partial(load_checkpoint, shared_folder, params, optimizer, **options)
        assert_all_raise(world, MismatchError, match, call)
