"""What the device that MLX computes on makes different."""

import time
from contextlib import suppress

import mlx.core as mx
import pytest

from mlxdist.arrays import device
from tests.support.bad_arrays import array_of_a_thread_that_ended, inverse_of_zeros
from tests.support.examples import assert_same_bits
from tests.support.lazy_arrays import is_lazy


@pytest.fixture
def arrays():
    return [mx.ones((2, 3)), mx.zeros(2)]


def test_packed_arrays_of_an_accelerator_are_one(arrays, monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    (whole,) = device.packed(arrays)
    assert_same_bits(whole, mx.array([1.0] * 6 + [0.0] * 2))


def test_packed_arrays_of_a_cpu_are_not_copied(arrays, monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    assert device.packed(arrays) is arrays


@pytest.mark.parametrize("transform", [mx.compile, mx.grad])
def test_may_be_tracing_is_true_inside_a_transformation_alone(transform):
    seen = []

    def traced(array):
        seen.append(device.may_be_tracing())
        return array.sum()

    lazy = mx.ones(3) + 1
    assert not device.may_be_tracing()
    transform(traced)(lazy)
    assert seen == [True]
    assert not device.may_be_tracing()


def test_settle_waits_although_an_error_of_the_stream_comes_first(monkeypatch):
    """MLX raises it before it waits."""
    errors = [RuntimeError("of the stream"), RuntimeError("of what was queued")]
    finished = []

    def synchronize(stream):
        if errors:
            raise errors.pop()
        finished.append(stream)

    monkeypatch.setattr(mx, "synchronize", synchronize)
    device.settle()
    assert finished == [mx.default_stream(mx.default_device())]


def test_settle_ends_where_a_stream_has_nothing_but_errors(monkeypatch):
    def synchronize(stream):
        raise RuntimeError("no such stream")

    monkeypatch.setattr(mx, "synchronize", synchronize)
    device.settle()


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_recover_keeps_values_and_objects(shape):
    lazy = mx.stop_gradient(mx.full(shape, 2, mx.bfloat16))
    device.recover([lazy, "no array"])
    assert not is_lazy(lazy)
    assert_same_bits(lazy, mx.full(shape, 2, mx.bfloat16))


def test_recover_leaves_an_array_that_cannot_be_computed():
    device.recover([array_of_a_thread_that_ended()])


@pytest.mark.fails_in_mlx
def test_pending_error_of_earlier_work_is_returned_once():
    with suppress(RuntimeError):  # at once, where the computation is fast
        mx.async_eval(inverse_of_zeros())
        time.sleep(0.1)
        error = device.pending_error()
        assert error is not None
        assert "before has failed: [Inverse::eval_cpu] LU factorization" in error
    assert device.pending_error() is None


def test_errors_that_clear_cache_raises_are_printed_and_pending(monkeypatch, capsys):
    raised = ["of a stream", "of another", "of another"]

    def clear_cache():
        if raised:
            raise RuntimeError(raised.pop(0))

    monkeypatch.setattr(mx, "clear_cache", clear_cache)
    device.clear_cache()
    assert "queued before has failed: of another\n" in capsys.readouterr().err
    error = device.pending_error()
    assert error.endswith("has failed: of a stream; of another")
    assert (raised, device.pending_error()) == ([], None)


def test_have_values_keeps_arrays_usable_beside_one_that_cannot_be_evaluated(
    monkeypatch,
):
    """MLX may lose the event of each array that it queues with that one."""
    lazy, recovered = mx.ones(3) + 1, []
    monkeypatch.setattr(device, "recover", recovered.extend)
    with pytest.raises(RuntimeError, match="There is no Stream"):
        device.have_values([lazy, array_of_a_thread_that_ended()])
    assert recovered[0] is lazy
    assert device.have_values([lazy])
