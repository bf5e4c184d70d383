"""Arguments that one rank can't read, or that can't be saved: refused on all ranks."""

import os
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from tests.support.checkpoints import assert_all_raise, make_run

pytestmark = pytest.mark.mpi


class NoPath:
    def __fspath__(self):
        raise RuntimeError("no path today")


@pytest.mark.parametrize("kind", ["path", "working folder", "optimizer", "step"])
def test_argument_that_the_last_rank_cannot_read_is_refused_on_all(
    kind, world, shared_folder, monkeypatch
):
    """Raised on that rank alone, it left the others waiting."""
    params, optimizer = make_run(world)
    folder, step, match = shared_folder, 1, "wrap it"
    if kind == "path":
        folder, match = NoPath(), "no path today"
    elif kind == "working folder":
        home = shared_folder / f"home-{world.rank}"
        home.mkdir()
        monkeypatch.chdir(home)
        folder, match = "checkpoints", "No such file"
        os.rmdir(home)
    elif kind == "optimizer":
        optimizer = optim.SGD(0.1)
    else:
        step, match = 10**5000, "step is out of range"
    if world.rank < world.size - 1:
        folder, step, optimizer = shared_folder, 1, make_run(world)[1]
    else:
        make_run(world)
    save = partial(save_checkpoint, folder, step, params, optimizer)
    assert_all_raise(world, MismatchError, match, save)
    load = partial(load_checkpoint, folder, params, optimizer, step=step)
    assert_all_raise(world, MismatchError, match, load)


class Sampler:
    def __init__(self, state):
        self._state = state

    def state_dict(self):
        return self._state


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"seen": [{1: 2}]}, "must be a dict, and all keys"),
        ({10: 1, 9: 1}, "must be a dict, and all keys"),
        ([1], "must be a dict, and all keys"),
        (None, "must be a dict, and all keys"),
        ({"rate": float("nan")}, "is no JSON: Out of range"),
    ],
)
def test_state_of_a_sampler_that_json_would_change_is_refused(
    state, match, world, shared_folder
):
    save = partial(save_checkpoint, shared_folder, 1, *make_run(world))
    call = partial(save, sampler=Sampler(state))
    assert_all_raise(world, MismatchError, match, call)


def test_array_with_a_mask_is_refused(world, shared_folder):
    """It was saved without the mask."""
    extra = {"a": np.ma.array([1, 2], mask=[0, 1]), "b": mx.ones(2)}
    save = partial(save_checkpoint, shared_folder, 1, *make_run(world), extra)
    assert_all_raise(world, MismatchError, r"extra\.a has a mask", save)
