"""The agreement protocol: ranks that make different calls get an error on all ranks."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist import MismatchError
from mlxdist.arrays import device
from mlxdist.comm import agree
from mlxdist.comm.agreement import weight_problem
from tests.support.examples import distributed

pytestmark = pytest.mark.mpi(min_size=2)


def is_last(world):
    return world.rank == world.size - 1


def test_agree_returns_the_number_of_each_rank(world):
    numbers = agree(world.control, "a call", 7, list, number=float(world.rank))
    assert list(numbers) == [float(rank) for rank in range(world.size)]


def test_agree_on_other_details_names_the_ranks_that_differ(world):
    lines = ["size 4" if is_last(world) else "size 3", "the same"]
    with pytest.raises(MismatchError, match="a call refused") as refusal:
        agree(world.control, "a call", 8 if is_last(world) else 7, lambda: lines)
    message = str(refusal.value)
    assert f"rank {world.size - 1}: size 4" in message
    assert "size 3" in message
    assert "the same" not in message


def test_agree_with_a_problem_on_one_rank_raises_it_everywhere(world):
    problem = "its disk is full" if is_last(world) else None
    wanted = f"rank {world.size - 1}: its disk is full"
    with pytest.raises(MismatchError, match=wanted):
        agree(world.control, "a call", 7, list, problem=problem)


@pytest.mark.parametrize("weight", [None, 0, 0.0, 1e-9, 1, 2.5, 1e15, mx.array(3.0)])
def test_weight_problem_of_a_weight_in_range_is_none(weight):
    assert weight_problem(weight) is None


@pytest.mark.parametrize(
    "weight", [-1, -1e-30, 1e-10, 1.1e15, float("nan"), float("inf"), "a", mx.ones(2)]
)
def test_weight_problem_of_another_weight_names_it(weight):
    assert "it must be 0, or a number from" in weight_problem(weight)


def test_agree_refuses_a_call_while_mlx_keeps_an_error_of_one_rank(monkeypatch, world):
    """MLX would raise it in the midst of the call, and other ranks would wait."""
    error = "out of memory" if is_last(world) else None
    monkeypatch.setattr(device, "pending_error", lambda: error)
    with pytest.raises(MismatchError, match=f"rank {world.size - 1}: out of memory"):
        world.barrier()


def test_agree_in_another_call_names_both_calls(world):
    call = "another call" if is_last(world) else "a call"
    with pytest.raises(MismatchError, match="the same calls in the same order") as e:
        agree(world.control, call, 7, list)
    assert f"rank {world.size - 1}: another call" in str(e.value)
    world.barrier()


def test_agree_of_a_comparison_and_a_barrier_is_refused(world):
    call = world.barrier
    if not is_last(world):
        call = partial(world.identical, {"w": mx.zeros(3)})
    with pytest.raises(MismatchError, match=r"World\.identical"):
        call()


@pytest.mark.parametrize("color", [-1, None, 1.5])
def test_agree_on_a_split_with_a_wrong_color_is_refused(color, world):
    with pytest.raises(MismatchError, match="color is"):
        world.split(color if is_last(world) else 0)


def test_agree_on_updates_of_optimizers_in_another_order_is_refused(world):
    """All-reduces of the same size of two models, swapped on one rank."""
    tree = {"w": mx.zeros(3)}
    first, second = (distributed(world, optim.SGD(0.1)) for _ in range(2))
    first.init(tree)
    second.init(tree)
    optimizer = second if is_last(world) else first
    with pytest.raises(MismatchError, match="the same calls in the same order"):
        optimizer.apply_gradients(tree, tree)
    assert not any(optimizer.step.item() for optimizer in (first, second))


@pytest.mark.parametrize(
    "other_call",
    [
        lambda world, tree: world.barrier(),
        lambda world, tree: world.mean(1.0),
        lambda world, tree: world.broadcast(tree),
        lambda world, tree: mlxdist.average_gradients(tree, world=world),
    ],
    ids=["barrier", "mean", "broadcast", "average_gradients"],
)
def test_agree_on_an_update_that_one_rank_does_not_make_is_refused(other_call, world):
    tree = {"w": mx.zeros(3)}
    optimizer = distributed(world, optim.SGD(0.1))
    optimizer.init(tree)
    call = partial(optimizer.apply_gradients, tree, tree)
    if is_last(world):
        call = partial(other_call, world, tree)
    with pytest.raises(MismatchError, match="the same calls in the same order"):
        call()
    assert optimizer.step.item() == 0
    optimizer.apply_gradients(tree, tree)
