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


def test_end_exchange_drops_errors_before_zeros_are_sent():
    calls = []
    path = KeyPath(("w",))
    wire = SimpleNamespace(
        plan=SimpleNamespace(buckets=[], entries=[Entry(path, (3,), "float32")]),
        comm=SimpleNamespace(settle=lambda: calls.append("settle")),
        reduce=lambda gradients, weights: calls.append(gradients),
    )
    norm = SimpleNamespace(measure=lambda *_: UNMEASURED)
    run = SimpleNamespace(wire=wire, norm=norm)
    gradients = LocalGradients({path: mx.ones(3)}, keeps=True)
    attempt = Attempt(run, None, None, gradients, None)
    assert attempt.end_exchange() is UNMEASURED
    assert calls[0] == "settle"
    assert calls[1][path].tolist() == [0, 0, 0]
