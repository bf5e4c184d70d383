"""The wrapped optimizer: how its state may be cut, what it costs, who gets what."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim.inner_optimizer import InnerOptimizer
from tests.support.examples import (
    CLASSES,
    apply_steps,
    assert_same_bits,
    bits,
    distributed,
    each_shard,
    full_like,
    make,
)
from tests.support.plans import make_entry

pytestmark = pytest.mark.mpi


def train_in_slices(optimizer, parameter, bounds):
    """Return a parameter after some steps on slices of it, each by itself."""

    def cut(array):
        if len(bounds) == 1:
            return {"0": array}
        flat = array.reshape(-1)
        return {str(i): flat[start:stop] for i, (start, stop) in enumerate(bounds)}

    tree = cut(parameter)
    optimizer.init(tree)
    for step in range(4):
        gradient = mx.random.normal(parameter.shape, key=mx.random.key(step))
        tree = optimizer.apply_gradients(cut(gradient), tree)
    return mx.concatenate([piece.reshape(-1) for piece in tree.values()])


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"MultiOptimizer"}))
def test_strategy_of_each_class_is_elements_where_slices_give_the_same_bits(
    name, world
):
    parameter = mx.random.normal((6, 8), key=mx.random.key(9))
    whole = train_in_slices(make(name), parameter, [(0, 48)])
    cut = train_in_slices(make(name), parameter, [(0, 5), (5, 31), (31, 48)])
    same = bool((bits(whole) == bits(cut)).all())
    strategy = distributed(world, make(name), shard=True).options.strategy
    assert strategy == ("elements" if same else "tensors")


def test_strategy_of_a_subclass_of_a_known_class_is_tensors(world):
    class Changed(optim.Adam):
        pass

    assert distributed(world, Changed(0.1), shard=True).options.strategy == "tensors"
    with pytest.raises(ValueError, match="elementwise = True"):
        distributed(world, Changed(0.1), shard="elements")
    with pytest.raises(ValueError, match="Muon"):
        distributed(world, optim.Muon(0.1), shard="elements")


def owned_paths(optimizer, ranks):
    plan = optimizer.describe().plan
    return [list(map(str, plan.shard(rank))) for rank in range(ranks)]


@pytest.mark.mpi(min_size=2)
def test_cost_of_muon_gives_each_rank_as_many_square_matrices(world):
    """A square matrix costs it more than a thin one of as many elements."""
    n = world.size
    tree = {f"square{i}": mx.zeros((128, 128)) for i in range(n)}
    tree |= {f"thin{i}": mx.zeros((4, 4096)) for i in range(4 * n)}
    optimizer = distributed(world, optim.Muon(0.1), shard=True)
    optimizer.init(tree)
    for paths in owned_paths(optimizer, n):
        assert sum("square" in path for path in paths) == 1
        assert sum("thin" in path for path in paths) == 4


def test_cost_of_muon_is_that_of_a_matrix_and_of_its_transpose():
    (leaf,) = InnerOptimizer(optim.Muon(0.1)).leaves
    wide, high = (make_entry("w", shape, "float32") for shape in ((8, 512), (512, 8)))
    work = leaf.work(wide)
    assert work == leaf.work(high)
    # 4 m^2 n + 2 m^3 operations in each of 5 steps, 64 of them for an element.
    assert work == 8 * 512 + 5 * (4 * 8**2 * 512 + 2 * 8**3) / 64


def test_cost_of_a_tensor_is_its_share_of_the_work_plus_that_of_the_bytes():
    inner = InnerOptimizer(optim.Muon(0.1))
    inner.assign({"square": mx.zeros((64, 64)), "thin": mx.zeros((4, 1024))})
    square = make_entry("square", (64, 64), "float32")
    thin = make_entry("thin", (4, 1024), "float32")
    works = [inner.leaves[0].work(entry) for entry in (square, thin)]
    assert inner.costs([square, thin]) == {
        square.path: works[0] / sum(works) + 0.5,
        thin.path: works[1] / sum(works) + 0.5,
    }


def test_hyperparameter_that_is_an_array_is_not_compiled_in():
    optimizer = optim.SGD(0.1)
    (leaf,) = InnerOptimizer(optimizer).leaves
    assert leaf.can_be_compiled
    optimizer.weight_decay = mx.array(0.5)  # can change in place
    assert not leaf.can_be_compiled


@pytest.mark.mpi(min_size=2)
def test_cost_of_a_multi_optimizer_is_that_of_each_parameters_own(world):
    n = world.size
    tree = {f"muon{i}": mx.zeros((128, 128)) for i in range(n)}
    tree |= {f"adam{i}": mx.zeros((128, 128)) for i in range(4 * n)}
    inner = optim.MultiOptimizer(
        [optim.Muon(0.1), optim.AdamW(0.1)], [lambda path, x: "muon" in path]
    )
    optimizer = distributed(world, inner, shard="tensors")
    optimizer.init(tree)
    for paths in owned_paths(optimizer, n):
        assert sum("muon" in path for path in paths) == 1
        assert sum("adam" in path for path in paths) == 4


@pytest.mark.parametrize("shard", [False, "tensors"])
def test_filters_of_a_multi_optimizer_see_whole_parameters(shard, world):
    inner = optim.MultiOptimizer(
        [optim.SGD(0.5), optim.SGD(0.25), optim.SGD(0.125)],
        [lambda path, x: x.ndim == 2, lambda path, x: path.startswith("first")],
    )
    tree = {"first": [mx.zeros((10, 4)), mx.zeros((1,))], "second": mx.zeros((3, 1))}
    tree["third"] = mx.zeros(2)
    result = distributed(world, inner, shard=shard).apply_gradients(
        full_like(tree, 1), tree
    )
    assert result["first"][0][0, 0].item() == -0.5
    assert result["first"][1].item() == -0.25
    assert result["second"][0].item() == -0.5
    assert result["third"][0].item() == -0.125


# -- optimizers that users write


class UserSign(optim.Optimizer):
    """A user's own optimizer, with state that MLX's do not have."""

    def __init__(self, learning_rate):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)

    def init_single(self, parameter, state):
        state["count"] = mx.array(0)
        state["nested"] = {"last": mx.zeros_like(parameter)}

    def apply_single(self, gradient, parameter, state):
        state["count"] = state["count"] + 1
        state["nested"]["last"] = gradient
        return parameter - self.learning_rate * mx.sign(gradient - gradient.mean())


class ElementwiseSign(UserSign):
    elementwise = True

    def apply_single(self, gradient, parameter, state):
        state["nested"]["last"] = gradient
        return parameter - self.learning_rate * mx.sign(gradient)


class LateState(optim.Optimizer):
    """Makes its state at the first step, and not before."""

    elementwise = True

    def init_single(self, parameter, state):
        pass

    def apply_single(self, gradient, parameter, state):
        state["m"] = 0.5 * state.get("m", mx.zeros_like(gradient)) + gradient
        return parameter - 0.125 * state["m"]


class MatricesOnly(optim.Optimizer):
    """Takes matrices alone, and draws from MLX's random numbers."""

    def init_single(self, parameter, state):
        state["rows"] = mx.zeros((1, parameter.shape[1]))

    def apply_single(self, gradient, parameter, state):
        return parameter - 0.125 * gradient + mx.random.normal(parameter.shape)


def matrices():
    return {"a": mx.arange(24.0).reshape(4, 6), "b": mx.ones((3, 5))}


@pytest.mark.parametrize(
    ("kind", "strategy"), [(UserSign, "tensors"), (ElementwiseSign, "elements")]
)
def test_user_defined_optimizer_gives_the_bits_of_one_process(kind, strategy, world):
    optimizer, reference = distributed(world, kind(0.1), shard=True), kind(0.1)
    start = {"a": mx.ones((7, 3)), "b": {"c": mx.zeros(5)}}
    optimizer.init(start)
    reference.init(start)
    assert optimizer.options.strategy == strategy
    tree = apply_steps(optimizer, start, range(3))
    assert_same_bits(tree, apply_steps(reference, start, range(3)))
    assert_same_bits(optimizer.gather_state(), reference.state)


@each_shard
def test_user_defined_state_made_at_the_first_step_is_resumed(
    shard, world, shared_folder
):
    def build():
        optimizer = distributed(world, LateState(), shard=shard)
        tree = matrices()
        optimizer.init(tree)
        return tree, optimizer

    tree, optimizer = build()
    tree = apply_steps(optimizer, tree, range(2))
    mlxdist.save_checkpoint(shared_folder, 2, tree, optimizer)
    other, resumed = build()
    mlxdist.load_checkpoint(shared_folder, other, resumed)
    assert_same_bits(
        apply_steps(resumed, other, range(2, 3)),
        apply_steps(optimizer, tree, range(2, 3)),
    )


@pytest.mark.usefixtures("compiled_always")
@pytest.mark.parametrize("shard", [False, "tensors"])
def test_user_defined_optimizer_is_not_run_to_compile_kernels(shard, world):
    mx.random.seed(3)
    before = mx.random.state[0].tolist()
    distributed(world, MatricesOnly(), shard=shard).init(matrices())
    assert mx.random.state[0].tolist() == before
