"""Saves that are refused: on all ranks, with the reason."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import save as save_module
from tests.support.checkpoints import assert_all_raise, make_run
from tests.support.examples import distributed

pytestmark = pytest.mark.mpi


@pytest.mark.mpi(min_size=2)
def test_save_refuses_parameters_that_drifted(world, shared_folder):
    params, optimizer = make_run(world)
    if world.rank == world.size - 1:
        params = {**params, "two": params["two"] + 1}
    assert_all_raise(
        world,
        MismatchError,
        rf"(?s)save_checkpoint refused.*two.*rank {world.size - 1}.*last checkpoint",
        lambda: save_checkpoint(shared_folder, 1, params, optimizer),
    )
    assert not list(shared_folder.iterdir())


@pytest.mark.mpi(min_size=2)
def test_save_refuses_state_of_all_ranks_that_drifted(world, shared_folder):
    params, optimizer = make_run(world, shard=False)
    if world.rank == world.size - 1:
        optimizer.state["two"]["m"] += 1
    save = partial(save_checkpoint, shared_folder, 1, params, optimizer)
    assert_all_raise(world, MismatchError, "optimizer/two/m", save)


def test_save_refuses_invalid_or_differing_arguments(world, shared_folder):
    params, optimizer = make_run(world)
    with pytest.raises(ValueError, match=r"mlxdist\.DistributedOptimizer\(optimizer\)"):
        save_checkpoint(shared_folder, 1, params, optim.SGD(0.1))

    def save(step=1, extra=None, **options):
        return lambda: save_checkpoint(
            shared_folder, step, params, optimizer, extra, **options
        )

    for call, match in (
        (save(-1), "step is -1"),
        (save(1.5), "step is 1.5"),
        (save(keep=0), "keep is 0"),
        (save(extra={"f": print}), r"extra\.f is a builtin.*Nothing is pickled"),
        (save(extra={1: 2}), "has the key 1"),
        (save(extra={"$mlx": 2}), "begin with"),
        (save(extra=[np.array("text")]), r"extra\.0 is an array of"),
    ):
        assert_all_raise(world, MismatchError, match, call)
    if world.size > 1:
        assert_all_raise(world, MismatchError, "saved as step 0", save(world.rank))
        assert_all_raise(
            world, MismatchError, "extra loss", save(extra={"loss": world.rank})
        )
        assert_all_raise(
            world, MismatchError, "keep 1, back", save(keep=1 + world.rank)
        )
        arrays = {"loss": mx.array(world.rank)}
        assert_all_raise(
            world, MismatchError, "extra/loss with sum", save(extra=arrays)
        )
        invalid = {"f": print} if world.rank else None
        assert_all_raise(world, MismatchError, "rank 0: ready", save(extra=invalid))
    assert not list(shared_folder.iterdir())
    fresh = mlxdist.DistributedOptimizer(optim.SGD(0.1), world=world)
    assert_all_raise(
        world,
        MismatchError,
        "init",
        lambda: save_checkpoint(shared_folder, 1, params, fresh),
    )


def test_save_has_a_serial_above_those_that_any_rank_sees(
    world, shared_folder, monkeypatch
):
    """Hosts with disks of their own may have different checkpoints."""
    params, optimizer = make_run(world)
    monkeypatch.setattr(save_module, "next_serial", lambda folder: 5 + world.rank)
    path = save_checkpoint(shared_folder, 1, params, optimizer)
    assert path.name == f"save-{4 + world.size:05}-step-00000001"
    assert load_checkpoint(shared_folder, params, optimizer).path == path


class Counting(optim.Optimizer):
    """Counts the steps of each parameter in a Python number."""

    elementwise = True

    def init_single(self, parameter, state):
        state["t"] = 0

    def apply_single(self, gradient, parameter, state):
        state["t"] += 1
        return parameter - gradient


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("shard", [False, "elements"])
def test_save_of_numbers_that_differ_between_ranks_is_refused(
    shard, world, shared_folder
):
    tree = {"w": mx.ones((5, 3))}
    optimizer = distributed(world, Counting(), shard=shard)
    optimizer.init(tree)
    save_checkpoint(shared_folder, 1, tree, optimizer)
    if world.rank == 1:
        optimizer.state["w"]["t"] = 7
    assert_all_raise(
        world,
        ValueError,
        r"optimizer/w/t|the state t of w differs on ranks 0 and 1",
        lambda: save_checkpoint(shared_folder, 2, tree, optimizer),
    )
    assert load_checkpoint(shared_folder, tree, optimizer).step == 1
    assert optimizer.state["w"]["t"] == 0


class Broken:
    """A sampler whose state can't be saved."""

    def __init__(self, state):
        self._state = state

    def state_dict(self):
        if isinstance(self._state, Exception):
            raise self._state
        return self._state

    def load_state_dict(self, state):
        self._state = state


def test_error_of_any_kind_on_one_rank_is_raised_on_all(world, shared_folder):
    """And the next save, which all ranks can make, is made."""
    params, optimizer = make_run(world)
    cyclic = []
    cyclic.append(cyclic)
    for state, extra, match in (
        (RuntimeError("disk"), None, "RuntimeError: disk"),
        ({"rng": {1}}, None, "is no JSON: Object of type set"),
        ({"rng": float("nan")}, None, "is no JSON"),
        ({}, cyclic, "extra is nested more than 100 deep"),
    ):
        is_last = world.rank == world.size - 1
        sampler = Broken(state if is_last else {})
        save = partial(save_checkpoint, shared_folder, 1, params, optimizer)
        call = partial(save, extra if is_last else None, sampler=sampler)
        assert_all_raise(world, MismatchError, match, call)
    folder = None if world.rank == world.size - 1 else shared_folder
    call = partial(save_checkpoint, folder, 1, params, optimizer)
    assert_all_raise(world, MismatchError, "folder is None; it must be a path", call)
    call = partial(load_checkpoint, folder, params, optimizer)
    assert_all_raise(world, MismatchError, "folder is None; it must be a path", call)
    save_checkpoint(shared_folder, 1, params, optimizer)
    call = partial(load_checkpoint, shared_folder, params, optimizer, step="1")
    assert_all_raise(world, MismatchError, "step is '1'", call)


def test_numbers_of_numpy_are_saved_as_numbers(world, shared_folder):
    params, optimizer = make_run(world)
    extra = {"epoch": np.int64(3), "loss": np.float64(0.5), "best": np.bool_(True)}
    save_checkpoint(shared_folder, np.int64(2), params, optimizer, extra)
    loaded = load_checkpoint(shared_folder, params, optimizer, step=np.int64(2))
    assert loaded.extra == {"epoch": 3, "loss": 0.5, "best": True}
    assert loaded.step == 2
