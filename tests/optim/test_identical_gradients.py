"""The warning where all ranks have the same gradients at the first update."""

import warnings

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from tests.support.examples import apply_steps, distributed, each_transport, parameters

pytestmark = pytest.mark.mpi


def warned(optimizer, gradients, **options):
    """Return the texts and files of warnings about gradients in an update."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer.apply_gradients(gradients, {"w": mx.ones(3000)}, **options)
    return [(str(w.message), w.filename) for w in seen if "same" in str(w.message)]


@each_transport
@pytest.mark.mpi(min_size=2)
def test_same_gradients_on_all_ranks_are_reported_once_on_rank_0(transport, world):
    optimizer = distributed(world, optim.SGD(0.5), transport=transport)
    same = {"w": mx.ones(3000)}
    first, second = warned(optimizer, same), warned(optimizer, same)
    assert second == []
    assert len(first) == (1 if world.is_root else 0)
    for text, file in first:
        assert f"all {world.size} ranks" in text
        assert "average_gradients" in text
        assert "weight=" not in text
        assert file == __file__


@pytest.mark.mpi(min_size=2)
def test_same_gradients_with_weights_warn_that_weights_have_no_effect(world):
    optimizer = distributed(world, optim.SGD(0.5))
    seen = warned(optimizer, {"w": mx.ones(3000)}, weight=1 + world.rank)
    assert ["weight= has no effect" in text for text, _ in seen] == [True] * len(seen)
    assert len(seen) == (1 if world.is_root else 0)


@pytest.mark.parametrize("where", [0, 2999], ids=["first", "last"])
def test_gradients_that_differ_in_one_element_are_not_reported(where, world):
    gradient = mx.ones(3000)
    gradient[where] = float(world.rank)
    optimizer = distributed(world, optim.SGD(0.5))
    assert warned(optimizer, {"w": gradient}) == []


def test_gradients_of_zeros_are_not_reported(world):
    assert warned(distributed(world, optim.SGD(0.5)), {"w": mx.zeros(3000)}) == []


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("first", ["zeros", "one rank"])
def test_update_that_compares_nothing_is_not_the_first_one(first, world):
    optimizer = distributed(world, optim.SGD(0.5))
    gradients, weight = {"w": mx.ones(3000)}, {}
    if first == "one rank":
        weight["weight"] = float(world.is_root)
    assert (
        warned(optimizer, gradients if weight else {"w": mx.zeros(3000)}, **weight)
        == []
    )
    assert len(warned(optimizer, gradients)) == (1 if world.is_root else 0)


def test_micro_batches_of_which_the_last_are_the_same_are_not_reported(world):
    optimizer = distributed(world, optim.SGD(0.5), accumulate=2)
    assert warned(optimizer, {"w": mx.full(3000, float(world.rank))}) == []
    assert warned(optimizer, {"w": mx.ones(3000)}) == []


def test_world_of_one_and_later_updates_are_not_reported(world):
    optimizer = distributed(world, optim.SGD(0.5))
    tree = parameters()
    apply_steps(optimizer, tree, [0], world.rank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_steps(optimizer, tree, [1], 0)


@pytest.mark.mpi(min_size=2)
def test_ranks_without_weight_are_not_compared(world):
    optimizer = distributed(world, optim.SGD(0.5))
    gradients = {"w": mx.ones(3000)}
    assert warned(optimizer, gradients, weight=float(world.is_root)) == []


def test_warnings_that_are_errors_leave_no_rank_behind(capsys, world):
    optimizer = distributed(world, optim.SGD(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
    is_printed = "do the work of one" in capsys.readouterr().err
    assert is_printed == (world.size > 1 and world.is_root)
