"""Checkpoints that are made to harm: bounded time, memory and text; nothing changes."""

import json
import os
import time
import tracemalloc

import mlx.core as mx
import pytest

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import bounded_json, directory, manifest_check, mlx_files
from mlxdist.checkpoint.manifest import NAME, to_bytes
from mlxdist.checkpoint.safetensors import Tensor, with_unique_names
from tests.support.checkpoint_fuzz import sign
from tests.support.checkpoints import (
    Examples,
    assert_all_raise,
    example_manifest,
    make_run,
    put,
    train,
    zeros,
)
from tests.support.examples import assert_same_bits


def signed(change):
    """Return the bytes of an example's manifest after a change, with its right sum."""
    content = json.loads(to_bytes(example_manifest()))
    del content["sha256"]
    change(content)
    sha256 = manifest_check.digest(content)
    return json.dumps({"sha256": sha256, **content}).encode()


def many_dimensions(content):
    content["arrays"][0]["shape"] = [2**52] * 100_000


def many_pieces_of_many_dimensions(content):
    content["arrays"][0]["shape"] = [1] * 64
    content["arrays"][0]["pieces"] *= 10_000


def many_arrays(content):
    content["arrays"] *= 3000


def many_values(content):
    content["extra"] = [[]] * 2_200_000


def deep(content):
    value = []
    for _ in range(400):
        value = [value]
    content["counters"] = value


def long_key(content):
    content["k" * 10**6] = 1


def long_value(content):
    content["layout"] = "v" * 10**6


def long_path(content):
    content["arrays"][1]["path"] = "p" * 10**6


def large_blocks(content):
    content["block"] = 2**29


def many_ranks(content):
    content["world_size"] = 2**40


@pytest.mark.parametrize(
    "change",
    [
        many_dimensions,
        many_pieces_of_many_dimensions,
        many_arrays,
        many_values,
        deep,
        long_key,
        long_value,
        long_path,
        large_blocks,
        many_ranks,
    ],
)
def test_manifest_that_is_too_much_is_refused_at_once(change, tmp_path):
    data = signed(change)
    (tmp_path / "save-00001-step-00000007").mkdir()
    start = time.process_time()
    with pytest.raises(ValueError, match=r"manifest\.json") as error:
        directory.parse_manifest(data, tmp_path, directory.Save(1, 7))
    assert time.process_time() - start < 3
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", [b"[]", b"{}", b'"",', b"[[[[", b"1,"])
def test_json_of_many_values_takes_bounded_memory(text):
    data = b"[" + text * (20 * 2**20 // len(text))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 4194304 values"):
            bounded_json.parse(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_unique_names_of_many_equal_ones_take_linear_time():
    tensors = [Tensor("w", "float32", (1,), 4)] * 20_000
    start = time.process_time()
    names = [tensor.name for tensor in with_unique_names(tensors)]
    assert time.process_time() - start < 6  # 0.05, and 60 if it were quadratic
    assert names[:3] == ["w", "w (2)", "w (3)"]
    assert len(set(names)) == len(names)


# -- wrong values, with right sums


NUMPY = {"$numpy": "a", "dtype": "int8", "shape": [2**70]}
WRONG = {
    "random key": (put("random", 0, [2**40, 1]), r"`\$\.random\[0\]"),
    "negative random key": (put("random", 0, [-1, 1]), r"`\$\.random\[0\]"),
    "loss scale": (
        put("counters", "loss_scale_log2", 2**50),
        r"loss scale is 2\*\*1125899906842624, wanted 1 to 2\*\*24",
    ),
    "negative counter": (put("counters", "updates", -1), r"`int` >= 0 .*\.counters"),
    "float counter": (put("counters", "updates", 1.5), r"got `float` .*\.counters"),
    "sampler": (put("sampler", "position", -5), "found -5, wanted an integer"),
    "sampler's type": (put("sampler", "position", "x"), "found 'x', wanted"),
    "sampler's keys": (put("sampler", {}), "the sampler's state has the keys"),
    "extra": (put("extra", {"$mlx": "none"}), "extra has an invalid .*none"),
    "extra's arrays": (put("extra", [{"$mlx": "a"}] * 2), "extra has an invalid .*mlx"),
    "extra's shape": (put("extra", NUMPY), "extra has an invalid .*numpy"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("kind", WRONG)
def test_load_of_wrong_values_with_right_sums_changes_nothing(
    kind, world, shared_folder
):
    params, optimizer = make_run(world, loss_scale="dynamic")
    sampler = Examples(world).sampler
    extra = {"a": mx.zeros(3)}
    path = save_checkpoint(shared_folder, 1, params, optimizer, extra, sampler=sampler)
    world.barrier()
    if world.is_root:
        content = json.loads((path / NAME).read_text())
        WRONG[kind][0](content)
        sign(path, content)
    world.barrier()
    other, resumed = make_run(world, loss_scale="dynamic")
    other = train(other, resumed, world, range(1))
    next(iter(sampler))
    before = dict(other), resumed.gather_state(), sampler.state_dict()
    mx.random.seed(7)
    key = mx.random.state[0].tolist()
    assert_all_raise(
        world,
        CheckpointError,
        WRONG[kind][1],
        lambda: load_checkpoint(shared_folder, other, resumed, sampler=sampler),
    )
    assert_same_bits(other, before[0])
    assert_same_bits(resumed.gather_state(), before[1])
    assert sampler.state_dict() == before[2]
    assert mx.random.state[0].tolist() == key
    assert resumed.resumable_state("save").counters()["updates"] == 1


class Stubborn:
    """A user's sampler that accepts a state on a copy, but not itself, on one rank."""

    def __init__(self, fails):
        self.position, self.fails, self.original = 0, fails, self

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]
        if self.fails and self.original is self and self.position:
            raise RuntimeError("stubborn")


@pytest.mark.mpi
def test_load_whose_sampler_fails_on_one_rank_changes_nothing(world, shared_folder):
    params, optimizer = make_run(world)
    sampler = Stubborn(False)
    sampler.position = 5
    save_checkpoint(shared_folder, 1, params, optimizer, sampler=sampler)
    sampler = Stubborn(world.rank == world.size - 1)
    tree = zeros(params)
    assert_all_raise(
        world,
        CheckpointError,
        "RuntimeError: stubborn",
        lambda: load_checkpoint(shared_folder, tree, optimizer, sampler=sampler),
    )
    assert sampler.position == 0
    assert_same_bits(tree, zeros(params))


@pytest.mark.mpi
def test_load_of_a_file_that_changes_meanwhile_changes_nothing(
    world, shared_folder, monkeypatch
):
    """The last rank's last read of a file changes the file's time."""
    params, optimizer = make_run(world)
    path = save_checkpoint(shared_folder, 1, params, optimizer)
    preadv = os.preadv

    def read(file, *arguments):
        count = preadv(file, *arguments)
        os.utime(path / "rank-00000.safetensors", ns=(1, time.time_ns()))
        return count

    if world.rank == world.size - 1:
        monkeypatch.setattr(os, "preadv", read)
    tree = zeros(params)
    assert_all_raise(
        world,
        CheckpointError,
        "modified while it was read",
        lambda: load_checkpoint(shared_folder, tree, optimizer),
    )
    assert_same_bits(tree, zeros(params))


@pytest.mark.mpi
@pytest.mark.filterwarnings("error::UserWarning")
def test_warning_of_a_skipped_checkpoint_that_is_an_error_comes_after_the_load(
    world, shared_folder
):
    """Raised on rank 0 alone, it left the other ranks waiting for their data."""
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)
    world.barrier()
    if world.is_root:
        (shared_folder / "save-00099-step-00000099").mkdir()
    world.barrier()
    tree = zeros(params)
    if world.is_root:
        with pytest.raises(UserWarning, match="skipped a checkpoint"):
            load_checkpoint(shared_folder, tree, optimizer)
    else:
        load_checkpoint(shared_folder, tree, optimizer)
    assert_same_bits(tree, params)


@pytest.mark.parametrize("kind", ["optimizer", "kind"])
def test_consolidate_refuses_a_manifest_of_no_optimizer(kind, tmp_path, world):
    params, optimizer = make_run(world)
    path = save_checkpoint(tmp_path / "saves", 1, params, optimizer)
    content = json.loads((path / NAME).read_text())
    if kind == "optimizer":
        content["optimizer"] = []
    else:
        for array in content["arrays"]:
            array["kind"] = "model"
    sign(path, content)
    (save,) = directory.list_saves(tmp_path / "saves")
    with pytest.raises(ValueError, match=r"no optimizer|same name|two arrays"):
        mlx_files.consolidate(tmp_path / "saves", save, tmp_path / "x", lambda n: None)
    assert sorted(os.listdir(tmp_path)) == ["saves"]
