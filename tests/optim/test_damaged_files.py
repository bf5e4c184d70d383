"""Arrays of a file that is damaged on one host: MLX reads them at their evaluation."""

import os
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxdist import MismatchError, save_checkpoint
from tests.support.examples import distributed
from tests.support.states import trained

pytestmark = pytest.mark.mpi


@pytest.fixture
def damaged(world, tmp_path):
    """Return an array whose file was cut short after it was opened, on the last rank.

    It can be evaluated on the others.
    """
    path = str(tmp_path / "weights.safetensors")
    mx.save_safetensors(path, {"w": mx.zeros(100_000)})
    array = mx.load(path)["w"]
    if world.rank == world.size - 1:
        os.truncate(path, 500)
    return array


@pytest.mark.mpi(min_size=2)
def test_init_refuses_weights_that_one_rank_can_not_read(damaged, world):
    model = nn.Module()
    model.w = damaged
    with pytest.raises(MismatchError, match=r"\[read\]"):
        distributed(world).init(model)


@pytest.mark.mpi(min_size=2)
def test_init_refuses_a_tree_that_one_rank_can_not_read(damaged, world):
    with pytest.raises(MismatchError, match=r"\[read\]"):
        distributed(world).init({"w": damaged})


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("call", ["before init", "after init", "load_state"])
def test_state_that_one_rank_can_not_read_is_refused_on_all(call, damaged, world):
    tree = {"w": mx.zeros(100_000)}
    full = trained(world, tree).gather_state()
    given = {**full, "w": {**full["w"], "m": damaged}}
    other = distributed(world, shard="elements")
    if call == "before init":
        other.state, refused = given, partial(other.init, tree)
    elif call == "after init":
        other.init(tree)
        other.state, refused = given, other.gather_state
    else:
        other.init(tree)
        refused = partial(other.load_state, given)
    with pytest.raises(MismatchError, match=r"\[read\]"):
        refused()


def test_save_refuses_an_array_that_one_rank_can_not_read(
    damaged, world, shared_folder
):
    tree = {"w": mx.arange(5.0)}
    save = partial(save_checkpoint, shared_folder, 1, tree, trained(world, tree))
    with pytest.raises(MismatchError, match=r"\[read\]"):
        save({"array": damaged})
    assert save().exists()
