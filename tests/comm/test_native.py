"""The transport through mx.distributed."""

import threading
import time

import mlx.core as mx
import pytest

import mlxdist
from tests.support.buckets import flat_bucket, known_weights, values_of
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
)

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
    """As on Metal and CUDA, where both sides of a collective are evaluated."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    mean = world.native.start_all_reduce(
        [mx.ones(100)], flat_bucket(world, 100), known_weights(world), mx.float32
    ).finish()
    assert values_of(mean) == {1.0}


@pytest.mark.skipif(
    mx.default_device() != mx.cpu, reason="an accelerator waits for each collective"
)
@pytest.mark.mpi(min_size=2)
def test_native_collective_of_a_late_rank_does_not_delay_what_computes(world):
    """MLX's `depends` runs on the stream of its first input."""
    ones, weights = mx.ones(100), known_weights(world)
    mx.eval(ones)
    world.barrier()
    if world.rank == world.size - 1:
        time.sleep(0.3)
    started = time.perf_counter()
    pending = [
        world.native.start_all_reduce(
            [ones * i], flat_bucket(world, 100), weights, mx.float32
        )
        for i in range(3)
    ]
    mx.eval(ones + 1)
    seconds = time.perf_counter() - started
    results = [values_of(each.finish()) for each in pending]
    assert seconds < 0.15
    assert results == [{0.0}, {1.0}, {2.0}]


@each_transport
@each_shard
def test_training_in_another_thread_gives_the_same_and_leaves_the_main_one_working(
    shard, transport, world
):
    """MLX's streams can be used only by the thread that made them."""

    def train():
        optimizer = distributed(world, shard=shard, transport=transport)
        tree = {"w": mx.ones(7)}
        optimizer.init(tree)
        tree = optimizer.apply_gradients({"w": mx.full((7,), world.rank + 1.0)}, tree)
        mx.eval(tree)
        trees.append(tree)
        trees.append(mlxdist.average_gradients({"w": mx.ones(3)}, world=world))
        mx.eval(trees)

    trees = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    train()
    assert_same_bits(trees[0], trees[2])
    assert_same_bits(trees[1], trees[3])


def failing():
    """Return an array that is queued and has failed, with an error not raised yet."""
    while True:
        array = mx.linalg.inv(mx.zeros((3, 3)), stream=mx.cpu)
        try:
            mx.async_eval(array)
        except RuntimeError:  # it has failed already: try again
            continue
        time.sleep(0.2)
        return array


@pytest.mark.mpi(min_size=2)
def test_native_error_of_an_input_is_raised_once_and_stops_no_collective(world):
    bucket, weights = flat_bucket(world, 9), known_weights(world)
    array = failing() if world.is_root else mx.zeros((3, 3))
    pending = world.native.start_all_reduce([array], bucket, weights, mx.float32)
    if world.is_root:
        with pytest.raises(RuntimeError, match="factorization"):
            pending.finish()
    mx.eval(pending.finish())
    ones = world.native.start_all_reduce([mx.ones(9)], bucket, weights, mx.float32)
    assert values_of(ones.finish()) == {1.0}
