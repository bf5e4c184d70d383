"""Python numbers and small arrays in the state of a user's own optimizer."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from mlxdist.optim.state_values import as_array, digest, like
from tests.support.examples import assert_same_bits, distributed, each_shard
from tests.support.states import trained

pytestmark = pytest.mark.mpi


class Counting(optim.Optimizer):
    """Momentum with Python numbers, an array of one element, and one of two."""

    elementwise = True

    def __init__(self):
        super().__init__()
        self._maybe_schedule("learning_rate", 0.1)
        self.state["seen"] = 0

    def init_single(self, parameter, state):
        state["m"] = mx.zeros_like(parameter)
        state["t"], state["scale"], state["warm"], state["note"] = 0, 1.0, True, None
        state["count"] = mx.zeros(1)
        state["range"] = mx.zeros(2)
        state["noise"] = mx.random.uniform(shape=parameter.shape)

    def apply_single(self, gradient, parameter, state):
        state["t"] += 1
        state["scale"] *= 0.5
        state["warm"] = state["t"] < 2
        state["count"] = state["count"] + 1
        state["range"] = mx.minimum(state["range"] - 1, 0)
        state["m"] = state["m"] + gradient
        self.state["seen"] = state["t"]
        return parameter - self.learning_rate * state["m"]


def started(world, tree, shard, inner=None):
    mx.random.seed(5)
    return trained(world, tree, inner or Counting(), shard=shard)


def small(world):
    """Parameters whose slices have one or two elements, as other arrays of state."""
    n = world.size
    return {
        "n": mx.arange(float(n)),
        "nk": mx.arange(2.0 * n).reshape(n, 2),
        "two": mx.arange(2.0),
        "one": mx.ones(1),
        "scalar": mx.array(1.0),
    }


@each_shard
def test_numbers_and_arrays_of_one_element_survive_another_cut(shard, world):
    tree = small(world)
    optimizer = started(world, tree, shard)
    before = optimizer.gather_state()
    for name in tree:
        state = before[name]
        assert (state["t"], state["scale"], state["warm"]) == (2, 0.25, False)
        assert state["note"] is None
        assert state["count"].tolist() == [2]
        assert state["range"].tolist() == [-2, -2]
        assert state["m"].shape == tree[name].shape
    assert before["seen"] == (2 if "n" in optimizer.state else before["seen"])
    tree["a"] = mx.arange(3.0)
    optimizer.init(tree)
    after = optimizer.gather_state()
    for name in small(world):
        assert_same_bits(
            {k: v for k, v in after[name].items() if isinstance(v, mx.array)},
            {k: v for k, v in before[name].items() if isinstance(v, mx.array)},
        )
        assert after[name]["t"] == 2
    other = distributed(world, Counting(), shard=shard)
    other.init(tree)
    other.load_state(after)
    assert other.gather_state()["two"]["t"] == 2
    assert other.gather_state()["n"]["count"].tolist() == [2]


@pytest.mark.mpi(min_size=2)
def test_numbers_that_differ_between_ranks_are_refused_on_all(world):
    tree = {"w": mx.arange(6.0)}
    optimizer = started(world, tree, False)
    if world.rank == 1:
        optimizer.state["w"]["t"] = 7
    with pytest.raises(MismatchError, match="the state t of w is 7 on rank 1, and 2"):
        optimizer.init(tree)
    assert optimizer.state["w"]["count"].tolist() == [2]


def test_random_numbers_are_not_drawn_to_record_a_layout(world):
    mx.random.seed(5)
    distributed(world, Counting(), shard="elements").init(
        {"w": mx.arange(3.0 * world.size)}
    )
    drawn = mx.random.uniform()
    mx.random.seed(5)
    Counting().init({"w": mx.zeros(3)})
    assert drawn.item() == mx.random.uniform().item()


class Late(optim.Optimizer):
    """Makes its state at the first step."""

    elementwise = True

    def __init__(self):
        super().__init__()
        self._maybe_schedule("learning_rate", 0.1)

    def init_single(self, parameter, state):
        pass

    def apply_single(self, gradient, parameter, state):
        state["m"] = state.get("m", mx.zeros_like(parameter)) + gradient
        state["count"] = state.get("count", mx.zeros(1)) + 1
        state["t"] = state.get("t", 0) + 1
        return parameter - self.learning_rate * state["m"]


@each_shard
@pytest.mark.parametrize("size", [1, 2, 5, None])
def test_state_made_at_the_first_step_survives_another_cut(size, shard, world):
    """Slices of one element next to longer ones, and counts of shape (1,).

    Without a size, rank 0 has `b` and one element of `a`, and the other ranks ten each.
    """
    size = size or 10 * world.size - 9
    tree = {"a": mx.arange(float(size)), "b": mx.arange(9.0)}
    optimizer = started(world, tree, shard, Late())
    before = optimizer.gather_state()
    for name in tree:
        assert before[name]["m"].shape == tree[name].shape
        assert before[name]["count"].tolist() == [2]
        assert before[name]["t"] == 2
    tree["c"] = mx.arange(4.0)
    optimizer.init(tree)
    after = optimizer.gather_state()
    for name in ("a", "b"):
        assert_same_bits(after[name]["m"], before[name]["m"])
        assert after[name]["count"].tolist() == [2]
        assert after[name]["t"] == 2


@each_shard
def test_numbers_are_saved_and_loaded_under_another_shard(shard, world, shared_folder):
    tree = {name: mx.arange(7.0) for name in ("w", "b", "c", "d")}
    optimizer = started(world, tree, shard)
    save_checkpoint(shared_folder, 1, tree, optimizer)
    mx.random.seed(5)
    other = distributed(world, Counting(), shard="tensors" if shard else "elements")
    load_checkpoint(shared_folder, tree, other)
    state = other.gather_state()
    assert [state["w"][name] for name in ("t", "scale", "warm")] == [2, 0.25, False]
    assert type(state["w"]["warm"]) is bool
    assert state["w"]["note"] is None
    assert state["seen"] == 2
    assert_same_bits(state["w"]["m"], optimizer.gather_state()["w"]["m"])


@each_shard
def test_state_made_at_the_first_step_is_assigned_before_init(shard, world):
    tree = small(world)
    full = started(world, tree, shard, Late()).gather_state()
    other = distributed(world, Late(), shard=shard)
    other.state = tree_map(lambda leaf: leaf, full)
    other.init(tree)
    assert_same_bits(other.gather_state()["nk"]["m"], full["nk"]["m"])
    assert other.gather_state()["nk"]["t"] == 2


@each_shard
def test_numbers_are_loaded_over_none_and_over_other_types(shard, world, shared_folder):
    tree = {name: mx.arange(7.0) for name in ("w", "b", "c", "d")}
    optimizer = started(world, tree, shard)
    for state in (optimizer.state[name] for name in tree if name in optimizer.state):
        state["note"] = 7
    optimizer.state["seen"] = 0.5
    save_checkpoint(shared_folder, 1, tree, optimizer)
    other = distributed(world, Counting(), shard=shard)
    load_checkpoint(shared_folder, tree, other)
    assert other.gather_state()["w"]["note"] == 7
    assert type(other.gather_state()["w"]["note"]) is int
    assert other.state["seen"] == 0.5


def test_text_in_the_state_is_refused_by_a_checkpoint(world, shared_folder):
    tree = {"w": mx.arange(7.0)}
    optimizer = started(world, tree, False)
    optimizer.state["w"]["note"] = "warm"
    assert optimizer.gather_state()["w"]["note"] == "warm"
    with pytest.raises(MismatchError, match="state note of w can't be saved"):
        save_checkpoint(shared_folder, 1, tree, optimizer)


def test_number_as_an_array_keeps_64_bits_and_comes_back():
    for number in (2**40, -(2**40), 0.1, True):
        back = like(number, as_array(number))
        assert (type(back), back) == (type(number), number)
    assert like(1, mx.array(2, mx.int32)) == 2  # whatever its dtype


def test_digest_of_other_names_or_dtypes_is_another():
    one = mx.array([1, 2], mx.int32)
    states = [{"m": one}, {"v": one}, {"m": one.view(mx.float32)}, {"m": one[None]}]
    assert len({digest(state) for state in states}) == len(states)


def test_step_that_a_user_set_to_a_number_is_loaded(world, shared_folder):
    tree = {"w": mx.arange(7.0)}
    optimizer = started(world, tree, False)
    optimizer.state["step"] = 7
    save_checkpoint(shared_folder, 1, tree, optimizer)
    other = started(world, tree, False)
    load_checkpoint(shared_folder, tree, other)
    assert other.state["step"].item() == 7
    assert other.state["step"].dtype == mx.uint64
