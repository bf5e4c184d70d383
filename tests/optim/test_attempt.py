"""The order of what one rank does in a step, without other ranks."""

from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlxdist.layout.entries import Entry
from mlxdist.layout.paths import KeyPath
from mlxdist.optim.attempt import Attempt
from mlxdist.optim.grad_norm import UNMEASURED, MeasuredNorm
from mlxdist.optim.local_gradients import LocalGradients


@pytest.mark.fails_in_mlx
def test_norm_of_means_that_fail_is_raised_ahead_of_the_sum():
    """Else this rank would be in a collective with numbers that nobody computed."""
    summed = []
    comm = SimpleNamespace(sum_scalar=summed.append)
    wire = SimpleNamespace(plan=SimpleNamespace(sharded=True), comm=comm)
    inverse = mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)
    failing = inverse.astype(mx.bfloat16)  # squared lazily, as float32 is not
    means = SimpleNamespace(
        collect=lambda: None, squares=None, arrays=lambda: [failing]
    )
    with pytest.raises(RuntimeError, match="LU factorization failed"):
        MeasuredNorm(wire).measure(means, {}, None)
    assert summed == []


PATH = KeyPath(("w",))


def attempt_of(calls, measure):
    """Return an attempt on one gradient of ones, which records what it calls."""
    means = SimpleNamespace(
        weights=None, replace_gradients=lambda g: calls.append(("replace", g))
    )

    def reduce(gradients, weights, earlier):
        assert earlier is None
        calls.append(("reduce", gradients))
        return means

    wire = SimpleNamespace(
        plan=SimpleNamespace(buckets=[], entries=[Entry(PATH, (3,), "float32")]),
        comm=SimpleNamespace(settle=lambda: calls.append(("settle", None))),
        reduce=reduce,
    )
    run = SimpleNamespace(wire=wire, norm=SimpleNamespace(measure=measure))
    gradients = LocalGradients({PATH: mx.ones(3)}, keeps=True)
    return Attempt(run, None, None, gradients, None)


def test_end_exchange_drops_errors_before_zeros_are_sent():
    calls = []
    attempt = attempt_of(calls, lambda *_: UNMEASURED)
    assert attempt.end_exchange() is UNMEASURED
    assert [name for name, _ in calls] == ["settle", "reduce"]
    assert calls[1][1][PATH].tolist() == [0, 0, 0]


def test_end_exchange_of_one_that_failed_half_way_sends_zeros_for_the_rest():
    """Its buckets have gradients of their own, which would fail again."""
    calls, failures = [], [RuntimeError("of the second bucket")]

    def measure(*_):
        if failures:
            raise failures.pop()
        return UNMEASURED

    attempt = attempt_of(calls, measure)
    with pytest.raises(RuntimeError, match="second bucket"):
        attempt.exchange()
    assert attempt.end_exchange() is UNMEASURED
    assert [name for name, _ in calls] == ["reduce", "settle", "replace"]
    assert calls[2][1][PATH].tolist() == [0, 0, 0]
