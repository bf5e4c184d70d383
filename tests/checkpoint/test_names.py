"""Names of arrays in files, where keys have dots, are digits, or look like others."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import msgspec
import pytest

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import directory, mlx_files
from mlxdist.checkpoint.manifest import NAME, to_bytes
from mlxdist.layout.paths import KeyPath
from tests.support.checkpoints import zeros
from tests.support.examples import distributed
from tests.support.trees import assert_same_trees, odd_trees

pytestmark = pytest.mark.mpi


class Features(nn.Module):
    """A model with keys that MLX's own files don't tell apart, one part frozen."""

    def __init__(self, value=0.0):
        super().__init__()
        self.by_name = {"user.age": mx.full(5, value), "7": [mx.full((2, 3), value)]}
        self.frozen = nn.Linear(2, 2)
        self.frozen.tables = {"a.b": mx.full(3, value), "0": mx.full(2, value)}
        self.frozen.freeze()


def make(world, value=0.0):
    model = Features(value)
    return model, initialized(world, model, optim.Adam(0.1), shard=True)


def initialized(world, params, inner=None, **options):
    """Return an initialized optimizer, of SGD by default."""
    optimizer = distributed(world, inner or optim.SGD(0.1), **options)
    optimizer.init(params)
    return optimizer


def without_quotes(folder):
    """Write the paths in a checkpoint's manifest as mlxdist 0.1.0 did."""
    (save,) = directory.list_saves(folder)
    data = directory.read_manifest(folder, save)
    manifest = directory.parse_manifest(data, folder, save)
    arrays = tuple(
        msgspec.structs.replace(array, path=KeyPath.parse(array.path).dotted)
        for array in manifest.arrays
    )
    edited = msgspec.structs.replace(manifest, arrays=arrays)
    (folder / save.name / NAME).write_bytes(to_bytes(edited))


@pytest.mark.parametrize("edit", [None, without_quotes])
def test_load_finds_keys_with_and_without_quotes(edit, world, shared_folder):
    model, optimizer = make(world, 3.0)
    save_checkpoint(shared_folder, 1, model, optimizer)
    world.barrier()
    if edit is not None and world.is_root:
        edit(shared_folder)
    world.barrier()
    restored, resumed = make(world)
    load_checkpoint(shared_folder, restored, resumed)
    assert_same_trees(restored.parameters(), model.parameters())
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())


def test_load_of_keys_with_dots_into_nested_dicts_is_refused(world, shared_folder):
    saved = {"a.b": mx.ones(3), "a": {"b": mx.zeros(3)}}
    optimizer = initialized(world, saved)
    save_checkpoint(shared_folder, 1, saved, optimizer)
    for model, surplus in (({"a.b": mx.ones(3)}, "a.b"), (saved["a"], '"a.b"')):
        tree = model if surplus == "a.b" else {"a": model}
        with pytest.raises(CheckpointError, match=f"it has parameter {surplus} float"):
            load_checkpoint(shared_folder, tree)
    load_checkpoint(shared_folder, restored := zeros(saved))
    assert_same_trees(restored, saved)


def test_plain_files_have_the_names_of_mlx_and_load(world, shared_folder):
    model, optimizer = make(world, 3.0)
    save_checkpoint(shared_folder / "saves", 1, model, optimizer, {"a.b": mx.ones(2)})
    target = shared_folder / "plain"
    if world.is_root:
        (save,) = directory.list_saves(shared_folder / "saves")
        mlx_files.consolidate(shared_folder / "saves", save, target, lambda n: None)
        model.save_weights(str(shared_folder / "weights.safetensors"))
        expected = mx.load(str(shared_folder / "weights.safetensors"))
        assert mx.load(str(target / "model.safetensors")).keys() == expected.keys()
    world.barrier()
    restored, resumed = make(world)
    load_checkpoint(target, restored, resumed)
    assert_same_trees(restored.parameters(), model.parameters())
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())


def test_arrays_whose_names_in_files_would_be_equal_are_saved(world, shared_folder):
    class Slashes(optim.SGD):
        def init_single(self, parameter, state):
            state["v"] = mx.zeros_like(parameter)
            state["b/m"] = mx.full(parameter.shape, 2.0)
            state["m"] = mx.full(parameter.shape, 3.0)

    tree = {"a": mx.ones(4), "a/b": mx.ones(4), "a[0:2]": mx.ones(2)}
    optimizer = initialized(world, tree, Slashes(0.1), shard="tensors")
    save_checkpoint(shared_folder, 1, tree, optimizer)
    restored = zeros(tree)
    resumed = distributed(world, Slashes(0.1), shard="tensors")
    load_checkpoint(shared_folder, restored, resumed)
    assert_same_trees(restored, tree)
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())


def test_extra_with_dots_and_digits_in_its_keys_is_saved(world, shared_folder):
    tree = odd_trees()["digits"]
    optimizer = initialized(world, tree)
    extra = {"a.b": mx.ones(2), "a": {"b": mx.zeros(3)}, "0": [mx.ones(1)], "": 1}
    save_checkpoint(shared_folder, 1, tree, optimizer, extra)
    loaded = load_checkpoint(shared_folder, tree, optimizer)
    assert loaded.extra["a.b"].tolist() == [1, 1]
    assert loaded.extra["a"]["b"].tolist() == [0, 0, 0]
    assert loaded.extra["0"][0].tolist() == [1]


@pytest.mark.parametrize("model", [mx.ones(3), (mx.ones(3),), ((mx.ones(2),),)])
def test_load_into_what_cannot_change_is_refused(model, world, shared_folder):
    tree = {"w": mx.ones(2)}
    optimizer = initialized(world, tree)
    save_checkpoint(shared_folder, 1, model, optimizer)
    with pytest.raises(CheckpointError, match="in no dict, list or module"):
        load_checkpoint(shared_folder, model)


class LateNestedState(optim.Optimizer):
    """Makes nested state at its first step, with a dot in one of its keys."""

    def init_single(self, parameter, state):
        pass

    def apply_single(self, gradient, parameter, state):
        state["moments"] = {"m.1": [gradient, 2 * gradient], "0": {"x": gradient}}
        return parameter - gradient


def test_state_that_is_nested_and_made_late_is_loaded(world, shared_folder):
    tree = {"w": mx.arange(6.0).reshape(2, 3), "b": mx.ones(3)}
    optimizer = initialized(world, tree, LateNestedState(), shard="tensors")
    tree = optimizer.apply_gradients(tree, tree)
    save_checkpoint(shared_folder, 1, tree, optimizer)
    resumed = distributed(world, LateNestedState(), shard="tensors")
    restored = zeros(tree)
    load_checkpoint(shared_folder, restored, resumed)
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())
