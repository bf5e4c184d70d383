"""The transport through mx.distributed."""

import mlx.core as mx
import pytest

from tests.support.buckets import flat_bucket, known_weights, values_of

pytestmark = pytest.mark.mpi


def test_native_collectives_of_empty_arrays_send_nothing(world):
    """Some operations on empty arrays crash in MLX's CUDA build."""
    bucket, empty = flat_bucket(world, 0), mx.zeros(0, mx.float16)
    weights, comm = known_weights(world), world.native
    before = [record.sequence for record in world.recorder.records][-1:]
    assert comm.start_reduce_scatter([empty], bucket, weights).finish().size == 0
    assert (
        comm.start_all_reduce([empty], bucket, weights, mx.float16).finish().size == 0
    )
    assert comm.start_all_gather([empty], bucket).finish().size == 0
    copy = comm.broadcast(empty.reshape(0, 3), 0)
    assert (copy.shape, copy.dtype) == ((0, 3), mx.float16)
    assert [record.sequence for record in world.recorder.records][-1:] == before


def test_native_all_reduce_with_fences_of_an_accelerator_is_equal(world, monkeypatch):
    """As on Metal, where both sides of a collective are evaluated."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    mean = world.native.start_all_reduce(
        [mx.ones(100)], flat_bucket(world, 100), known_weights(world), mx.float32
    ).finish()
    assert values_of(mean) == {1.0}
