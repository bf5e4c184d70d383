"""Hyperparameters changed between steps: on the wrapper, on the optimizer, in place."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim import compilation
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_shard,
    gradients,
    parameters,
)

pytestmark = pytest.mark.mpi


def momentum(optimizer):
    optimizer.momentum = 0.25


def weight_decay(optimizer):
    optimizer.weight_decay = 0.5


def betas(optimizer):
    optimizer.betas = [0.5, 0.75]


def first_beta_in_place(optimizer):
    optimizer.betas[0] = 0.5


def schedule_added(optimizer):
    optimizer._maybe_schedule("learning_rate", lambda step: 0.5 / (1 + step))


def schedule_replaced(optimizer):
    optimizer._schedulers["learning_rate"] = lambda step: 0.25 / (1 + step)


def bias_correction(optimizer):
    optimizer.bias_correction = True


CHANGES = [
    (lambda: optim.SGD(0.5, momentum=0.5), momentum),
    (lambda: optim.SGD(0.5, momentum=0.5), weight_decay),
    (lambda: optim.AdamW(0.5), weight_decay),
    (lambda: optim.AdamW(0.5), bias_correction),
    (lambda: optim.Adam(0.5, betas=[0.9, 0.999]), betas),
    (lambda: optim.Adam(0.5, betas=[0.9, 0.999]), first_beta_in_place),
    (lambda: optim.SGD(0.5), schedule_added),
    (lambda: optim.SGD(lambda step: 0.5 + step), schedule_replaced),
]


def train_with_a_change(world, make, change, shard, on_inner):
    """Return parameters of both optimizers, changed after two of four steps."""
    inner, reference = make(), make()
    optimizer = distributed(world, inner, shard=shard)
    tree = twin = parameters()
    optimizer.init(tree)
    for step in range(4):
        if step == 2:
            change(inner if on_inner else optimizer)
            change(reference)
        grads = gradients(tree, step, 0)
        tree = optimizer.apply_gradients(grads, tree)
        twin = reference.apply_gradients(grads, twin)
    return tree, twin


@pytest.mark.usefixtures("compiled_always")
@pytest.mark.parametrize("on_inner", [True, False], ids=["inner", "wrapper"])
@pytest.mark.parametrize(
    ("make", "change"),
    CHANGES,
    ids=[f"{i}-{c[1].__name__}" for i, c in enumerate(CHANGES)],
)
def test_change_between_steps_trains_as_mlx(make, change, on_inner, world):
    shard = "elements" if on_inner else False
    assert_same_bits(*train_with_a_change(world, make, change, shard, on_inner))


@each_shard
@pytest.mark.usefixtures("compiled_always")
def test_change_of_one_part_of_a_multi_optimizer_trains_as_mlx(shard, world):
    def make():
        return optim.MultiOptimizer(
            [optim.SGD(0.5, momentum=0.5), optim.AdamW(0.25)],
            [lambda path, x: path.startswith("blocks")],
        )

    def change(multi):
        multi.optimizers[1].weight_decay = 0.5

    assert_same_bits(*train_with_a_change(world, make, change, shard, on_inner=False))


@pytest.mark.usefixtures("compiled_always")
def test_update_is_compiled_again_once_nothing_changes_any_more(monkeypatch, world):
    monkeypatch.setattr(compilation, "COMPILED_AGAIN_AFTER", 2)
    inner, reference = optim.AdamW(0.5), optim.AdamW(0.5)
    optimizer = distributed(world, inner, shard=True)
    tree = twin = {"a": mx.ones((7, 3)), "b": mx.zeros(5)}
    optimizer.init(tree)
    compiled = []
    for step in range(5):
        if step == 1:
            inner.weight_decay = reference.weight_decay = 0.5
        tree = apply_steps(optimizer, tree, [step])
        twin = apply_steps(reference, twin, [step])
        compiled.append(optimizer.describe().compiled)
    assert compiled == [True, False, False, True, True]
    assert_same_bits(tree, twin)


def test_change_by_the_optimizer_itself_is_compared_with_no_rank(world):
    class Counting(optim.SGD):
        calls = 0

        def apply_single(self, gradient, parameter, state):
            self.calls += 1
            return super().apply_single(gradient, parameter, state)

    inner = Counting(0.5)
    optimizer = distributed(world, inner, shard="tensors")
    tree = {"a": mx.ones(4), "b": mx.ones(3), "c": mx.ones(2), "d": mx.ones(1)}
    inner.calls = 0
    tree = apply_steps(optimizer, tree, range(3))
    assert optimizer.step.item() == 3
    assert inner.calls == 3 * len(optimizer.describe().plan.shard(world.rank))


def test_hyperparameter_that_is_an_array_is_heeded_in_place(world):
    inner = optim.AdamW(0.5, weight_decay=mx.array([0.0]))
    optimizer = distributed(world, inner)
    tree = {"w": mx.ones(1)}
    optimizer.init(tree)
    tree = optimizer.apply_gradients({"w": mx.zeros(1)}, tree)
    inner.weight_decay[0] = 1.0
    tree = optimizer.apply_gradients({"w": mx.zeros(1)}, tree)
    assert tree["w"].item() == 0.5


@pytest.mark.usefixtures("compiled_always")
def test_method_of_the_class_replaced_between_steps_is_the_one_that_steps(
    monkeypatch, world
):
    optimizer = distributed(world, optim.SGD(0.5))
    tree = {"w": mx.ones(3)}
    optimizer.init(tree)
    monkeypatch.setattr(optim.SGD, "apply_single", lambda self, g, p, state: p + 1)
    assert optimizer.apply_gradients(tree, tree)["w"].tolist() == [2, 2, 2]


def test_schedule_that_counts_its_calls_is_called_once_a_step(world):
    class Halving:
        calls = 0

        def __call__(self, step):
            self.calls += 1
            return mx.array(0.5**self.calls)

    optimizer, reference = (
        distributed(world, optim.SGD(Halving())),
        optim.SGD(Halving()),
    )
    tree = parameters()
    assert_same_bits(
        apply_steps(optimizer, tree, range(2)), apply_steps(reference, tree, range(2))
    )


# -- values that differ between ranks


@each_shard
@pytest.mark.usefixtures("compiled_always")
@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("change", [weight_decay, first_beta_in_place, schedule_added])
def test_change_on_one_rank_is_refused_on_all_until_all_have_it(change, shard, world):
    inner = optim.AdamW(0.5, betas=[0.9, 0.999])
    optimizer = distributed(world, inner, shard=shard)
    tree = {"w": mx.ones(5)}
    optimizer.init(tree)
    tree = apply_steps(optimizer, tree, [0])
    if world.is_root:
        change(optimizer)
    with pytest.raises(mlxdist.MismatchError, match=r"rank 0: .* = "):
        apply_steps(optimizer, tree, [1])
    assert optimizer.step.item() == 1
    if not world.is_root:
        change(optimizer)
    apply_steps(optimizer, tree, [1])
    assert optimizer.step.item() == 2


@pytest.mark.mpi(min_size=2)
def test_changes_to_two_values_are_refused_on_all_ranks(world):
    optimizer = distributed(world, optim.SGD(0.5, momentum=0.5))
    tree = {"w": mx.ones(5)}
    optimizer.init(tree)
    optimizer.momentum = 0.25 + world.rank
    with pytest.raises(mlxdist.MismatchError, match=r"rank 1: momentum = 1\.25"):
        apply_steps(optimizer, tree, [0])
