"""What the device that MLX computes on makes different."""

import mlx.core as mx
import pytest

from mlxdist.arrays import device
from tests.support.examples import assert_same_bits


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
