"""An error inside of update(): nothing changes, and all ranks raise after it."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim.attempt import Attempt
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
    gradients,
    linear_layers,
    parameters,
)

pytestmark = pytest.mark.mpi


class Failing(optim.Adam):
    """Raises an error at its n-th tensor."""

    elementwise = True

    def __init__(self, error):
        super().__init__(0.5)
        self._error = error
        self._left = -1

    def fail_at(self, tensor):
        self._left = tensor

    def apply_single(self, gradient, parameter, state):
        self._left -= 1
        state["m"] = state["m"] + 1
        if self._left == 0:
            raise self._error
        return super().apply_single(gradient, parameter, state)


class FailingTree(optim.SGD):
    """Raises an error once its own apply_gradients has changed its state."""

    _fails = False

    def apply_gradients(self, gradients, parameters):
        stepped = super().apply_gradients(gradients, parameters)
        if self._fails:
            raise KeyError("boom")
        return stepped


@each_shard
@pytest.mark.parametrize(
    ("error", "transport"),
    [(KeyboardInterrupt(), "host"), (KeyError("boom"), "native")],
)
def test_error_on_all_ranks_leaves_the_step_whole(error, transport, shard, world):
    inner, reference = Failing(error), Failing(error)
    options = {"shard": shard, "transport": transport, "bucket_size": 64}
    optimizer = distributed(world, inner, **options)
    twin = distributed(world, reference, **options)
    tree = other = parameters()
    for each in (optimizer, twin):
        each.init(tree)
    tree, other = apply_steps(optimizer, tree, [0]), apply_steps(twin, other, [0])
    inner.fail_at(1)
    with pytest.raises(type(error)):
        apply_steps(optimizer, tree, [1])
    inner.fail_at(-1)
    assert_same_bits(optimizer.gather_state(), twin.gather_state())
    tree, other = apply_steps(optimizer, tree, [1]), apply_steps(twin, other, [1])
    assert_same_bits(tree, other)
    assert_same_bits(optimizer.gather_state(), twin.gather_state())


@pytest.mark.parametrize("on", ["class", "object"])
def test_error_in_a_replaced_method_of_mlx_leaves_the_step_whole(
    on, monkeypatch, world
):
    def apply_single(*arguments):
        calls.append(arguments)
        if len(calls) % 3 == 0:
            raise KeyError("boom")
        return original(*(arguments if on == "class" else (inner, *arguments)))

    calls, inner, original = [], optim.SGD(0.5), optim.SGD.apply_single
    optimizer = distributed(world, inner, bucket_size=16)
    model = linear_layers()
    optimizer.init(model)
    before = model.parameters()
    monkeypatch.setattr(
        optim.SGD if on == "class" else inner, "apply_single", apply_single
    )
    with pytest.raises(KeyError, match="boom"):
        optimizer.update(model, gradients(model.trainable_parameters(), 0, world.rank))
    assert_same_bits(model.parameters(), before)
    assert optimizer.step.item() == 0


def test_error_in_an_overridden_apply_gradients_leaves_the_step_whole(world):
    inner = FailingTree(0.5, momentum=0.5)
    optimizer = distributed(world, inner)
    tree = apply_steps(optimizer, parameters(), [0])
    before = {"state": optimizer.state["embed"]["weight"]["v"], "step": optimizer.step}
    inner._fails = True
    with pytest.raises(KeyError, match="boom"):
        apply_steps(optimizer, tree, [1])
    assert optimizer.state["embed"]["weight"]["v"] is before["state"]
    assert optimizer.step is before["step"]


@each_shard
def test_schedule_that_fails_leaves_the_step_whole(shard, world):
    def schedule(step):
        if fails:
            raise ZeroDivisionError
        return 0.5 / (1 + step)

    fails = False
    inner = optim.MultiOptimizer(
        [optim.SGD(0.5), optim.SGD(schedule)], [lambda path, x: path == "two"]
    )
    optimizer = distributed(world, inner, shard=bool(shard))
    tree = apply_steps(optimizer, parameters(), [0])
    fails = True
    with pytest.raises(ZeroDivisionError):
        apply_steps(optimizer, tree, [1])
    with pytest.raises(ZeroDivisionError):
        optimizer.apply_gradients({}, {})
    fails = False
    assert [part["step"].item() for part in inner.state["states"]] == [1, 1]
    apply_steps(optimizer, tree, [1])
    assert [part["step"].item() for part in inner.state["states"]] == [2, 2]


@each_shard
@each_transport
@pytest.mark.mpi(min_size=2)
def test_error_on_one_rank_is_raised_on_all_at_the_next_call(transport, shard, world):
    inner = Failing(KeyError("boom"))
    optimizer = distributed(
        world, inner, shard=shard, transport=transport, bucket_size=24
    )
    model = linear_layers()
    optimizer.init(model)
    grads = gradients(model.trainable_parameters(), 0, world.rank)
    optimizer.update(model, grads)
    fails = world.is_root
    inner.fail_at(1 if fails else -1)
    if fails:
        with pytest.raises(KeyError, match="boom"):
            optimizer.update(model, grads)
    else:
        optimizer.update(model, grads)
    inner.fail_at(-1)
    with pytest.raises(
        mlxdist.MismatchError, match=r"step 2 ended with KeyError: 'boom"
    ):
        optimizer.update(model, grads)
    optimizer.init(model)
    optimizer.update(model, grads)
    assert world.identical(model)
    # Rank 0 lacks the step that failed.
    assert optimizer.step.item() == 2
    assert optimizer.resumable_state("save").counts.steps == 2


@pytest.mark.mpi(min_size=2)
def test_error_is_not_reported_any_more_after_a_good_step(world):
    inner = Failing(KeyError("boom"))
    optimizer = distributed(world, inner)
    tree = {"w": mx.ones(5)}
    optimizer.init(tree)
    inner.fail_at(1)
    with pytest.raises(KeyError, match="boom"):
        apply_steps(optimizer, tree, [0])
    inner.fail_at(-1)
    apply_steps(optimizer, tree, [0])
    assert optimizer.resumable_state("save").counts.ended is None
    grads = {} if world.is_root else tree
    with pytest.raises(mlxdist.MismatchError, match="without gradients") as refusal:
        optimizer.apply_gradients(grads, tree)
    assert "KeyError" not in str(refusal.value)


def test_error_in_the_last_micro_batch_begins_the_step_anew(world):
    inner = Failing(KeyError("boom"))
    optimizer = distributed(world, inner, accumulate=2, bucket_size=16)
    tree = {"a": mx.ones(5), "b": mx.ones(7)}
    optimizer.init(tree)
    inner.fail_at(2)
    assert_same_bits(apply_steps(optimizer, tree, [0]), tree)
    with pytest.raises(KeyError, match="boom"):
        apply_steps(optimizer, tree, [1])
    assert_same_bits(apply_steps(optimizer, tree, [0]), tree)
    apply_steps(optimizer, tree, [1])
    assert optimizer.step.item() == 1


def test_error_without_a_text_reaches_the_user_and_is_reported_by_its_class(world):
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    optimizer = distributed(world, inner := Failing(Silent()))
    tree = {"w": mx.ones(5)}
    optimizer.init(tree)
    inner.fail_at(1)
    with pytest.raises(Silent):
        apply_steps(optimizer, tree, [0])
    assert "with Silent, which" in optimizer.resumable_state("load").counts.ended


@pytest.mark.mpi(min_size=2)
def test_exchange_that_cannot_be_ended_is_reported_at_each_call(monkeypatch, world):
    def broken(self):
        raise OSError

    inner = Failing(KeyError("boom"))
    optimizer = distributed(world, inner)
    tree = {"w": mx.ones(5)}
    optimizer.init(tree)
    inner.fail_at(1)
    monkeypatch.setattr(Attempt, "end_exchange", broken)
    with pytest.raises(KeyError, match="boom"):
        apply_steps(optimizer, tree, [0])
    for call in (
        lambda: apply_steps(optimizer, tree, [0]),
        lambda: optimizer.init(tree),
    ):
        with pytest.raises(RuntimeError, match=r"KeyError: 'boom', .* restart the job"):
            call()
