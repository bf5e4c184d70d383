"""Reduce-scatter and all-reduce over the host transport: added here, in rank order."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.comm.exchange import MOST_FREE, ROUND_BYTES, ReceiveBuffers
from tests.support.buckets import flat_bucket, known_weights, values_of
from tests.support.examples import assert_same_bits

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("message_limits")]


def reduce_scatter(world, array, bucket, weights=None):
    return started(world, array, bucket, weights).finish()


def started(world, array, bucket, weights=None, dtype=None):
    comm = world.host_transport
    weights = known_weights(world, weights)
    return comm.start_reduce_scatter([array], bucket, weights, dtype)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_all_reduce_is_the_gathered_reduce_scatter_rounded_once(dtype, world):
    """Each is gathered behind the next one's sum, and they may be finished late."""
    comm = world.host_transport
    bucket = flat_bucket(world, 333, str(dtype).rpartition(".")[2])
    weights = list(range(1, world.size + 1))
    arrays = mx.random.normal((4, 333), key=mx.random.key(world.rank)).astype(dtype)
    shards = [reduce_scatter(world, array, bucket, weights) for array in arrays]
    expected = [
        comm.start_all_gather([shard.astype(dtype)], bucket).finish()
        for shard in shards
    ]
    known = known_weights(world, weights)
    pending = [comm.start_all_reduce([array], bucket, known, dtype) for array in arrays]
    assert comm.sum_scalar(mx.array(1.0)).item() == world.size  # all are under way
    for collective, full, shard in zip(pending, expected, shards, strict=True):
        result = collective.finish()
        assert result.dtype == dtype
        assert_same_bits(result, full)
        squares = np.square(np.array(shard).astype(np.float64)).sum()
        assert collective.squares == pytest.approx(squares, rel=1e-5)


@pytest.mark.parametrize("sent", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_reduce_scatter_rounds_the_mean_once_and_squares_it_before(dtype, sent, world):
    bucket = flat_bucket(world, 333)
    array = mx.random.normal((333,), key=mx.random.key(world.rank)).astype(sent)
    wide, rounded = (started(world, array, bucket, None, d) for d in (None, dtype))
    mean = wide.finish()
    assert mean.dtype == mx.float32
    assert_same_bits(rounded.finish(), mean.astype(dtype))
    assert rounded.squares == wide.squares


def test_reduce_scatter_of_float64_adds_in_float64(world):
    """MLX has float64 on the CPU, and a sum in float32 would lose the last bits."""
    with mx.stream(mx.cpu):
        array = mx.full((5,), 1.0 + 2.0**-40, mx.float64)
    shard = reduce_scatter(world, array, flat_bucket(world, 5, "float64"))
    assert shard.dtype == mx.float64
    assert np.array(shard).tolist() == [1.0 + 2.0**-40] * shard.size


def test_reduce_scatter_adds_in_rank_order_on_every_rank(world):
    """1e8 + 1 - 1e8 depends on the order."""
    numbers = [1e8, 1.0, -1e8, 1.0]
    total = np.float32(0)
    for rank in range(world.size):
        total = np.float32(total + np.float32(numbers[rank % 4]))
    mean = total / np.float32(world.size)
    local = mx.full((50,), numbers[world.rank % 4])
    shard = reduce_scatter(world, local, flat_bucket(world, 50))
    assert values_of(shard) <= {float(mean)}


def test_receive_buffers_are_used_for_smaller_messages_and_replaced_by_larger_ones():
    buffers = ReceiveBuffers()
    first, second = buffers.take(100), buffers.take(100)
    buffers.put_back(first)
    assert buffers.take(60) is first
    buffers.put_back(first)
    buffers.put_back(second)
    large = buffers.take(1000)
    assert large.nbytes == 1000
    buffers.put_back(large)
    taken = [buffers.take(100) for _ in range(2)]
    assert [buffer.nbytes for buffer in taken] == [second.nbytes, large.nbytes]


def test_free_receive_buffers_are_bounded_where_small_messages_have_the_large_ones():
    buffers = ReceiveBuffers()
    for _ in range(12):
        small = [buffers.take(64) for _ in range(20)]
        waiting = [buffer for buffer in small if buffer.nbytes > 64]
        for buffer in small:
            if buffer.nbytes == 64:
                buffers.put_back(buffer)
        for buffer in [*waiting, buffers.take(ROUND_BYTES)]:
            buffers.put_back(buffer)
    free = [buffers.take(64).nbytes for _ in range(20)]
    assert MOST_FREE / 2 < sum(free) <= MOST_FREE + ROUND_BYTES
