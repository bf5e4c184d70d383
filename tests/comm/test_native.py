"""The transport through mx.distributed."""

import threading
import time
from functools import partial

import mlx.core as mx
import pytest

import mlxdist
from mlxdist.arrays import device
from mlxdist.comm import chain
from mlxdist.comm.chain import Chain
from mlxdist.comm.native import NativeTransport
from mlxdist.layout.sharding import Bucket
from tests.support.buckets import (
    bucket_of_blocks,
    flat_bucket,
    known_weights,
    values_of,
)
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
)
from tests.support.jobs import wait_until
from tests.support.plans import make_entry

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
def test_native_collective_of_a_late_rank_does_not_delay_what_computes(
    world, shared_folder
):
    """MLX's `depends` runs on the stream of its first input."""
    ones, weights = mx.ones(100), known_weights(world)
    mx.eval(ones)
    world.barrier()
    is_late, others_computed = world.rank == world.size - 1, True
    if is_late:
        others_computed = wait_until(
            lambda: len(list(shared_folder.iterdir())) == world.size - 1
        )
    pending = [
        world.native.start_all_reduce(
            [ones * i], flat_bucket(world, 100), weights, mx.float32
        )
        for i in range(3)
    ]
    mx.eval(ones + 1)
    if not is_late:
        (shared_folder / str(world.rank)).touch()
    results = [values_of(each.finish()) for each in pending]
    assert others_computed
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


@pytest.fixture
def accelerators(world, monkeypatch):
    """A transport as over JACCL, whose reduce-scatter MLX does not have over MPI."""

    def sum_scatter(rows, *, group, stream):
        total = mx.distributed.all_sum(rows, group=group, stream=stream)
        return total.reshape(group.size(), -1)[group.rank()]

    monkeypatch.setattr(mx.distributed, "sum_scatter", sum_scatter)
    return NativeTransport(world.native.group, "jaccl", world.recorder)


def uneven_owners(world, first):
    """Return a bucket of a tensor for each rank; the first one has another size."""
    sizes = [first] + [40] * (world.size - 1)
    entries = [make_entry(f"p{i}", (n,), "float32") for i, n in enumerate(sizes)]
    return Bucket(tuple(entries), world.size, tuple(range(world.size)))


BUCKETS = {
    **{f"owner of {n}": partial(uneven_owners, first=n) for n in (0, 40, 53, 1000)},
    **{f"blocks, {n}": partial(bucket_of_blocks, size=n) for n in (100, 199, 768)},
}


@pytest.mark.usefixtures("message_limits")
@pytest.mark.parametrize("make", BUCKETS.values(), ids=BUCKETS)
def test_native_reduce_scatter_of_unequal_spans_is_the_mean(make, accelerators, world):
    bucket, weights = make(world), known_weights(world)
    values = mx.arange(float(bucket.size))
    start, stop = bucket.span(world.rank)
    before = accelerators.traffic.bytes_sent
    local = values * (world.rank + 1)
    mean = accelerators.start_reduce_scatter([local], bucket, weights).finish()
    expected = values * sum(range(world.size + 1)) / world.size
    assert_same_bits(mean, expected[start:stop])
    every = accelerators.start_all_gather([values[start:stop]], bucket).finish()
    assert_same_bits(every, values)
    nbytes = accelerators.reduce_scatter_bytes(bucket, 4, pairwise=False)
    nbytes += accelerators.all_gather_bytes_sent(bucket, 4)
    assert accelerators.traffic.bytes_sent == before + nbytes


def test_native_spans_of_owners_are_padded_where_that_is_fewer_bytes(
    accelerators, world
):
    even = accelerators.all_gather_bytes_sent(uneven_owners(world, 40), 4)
    assert even == (world.size - 1) * 160
    uneven = accelerators.all_gather_bytes_sent(uneven_owners(world, 1000), 4)
    all_reduced = 2 * (world.size - 1) / world.size * 4 * (960 + 40 * world.size)
    assert uneven == min((world.size - 1) * 4000, round(all_reduced))


def failing():
    """Return an array that is queued and has failed, with an error not raised yet.

    On the first try: MLX blocks once about ten of its tasks have failed.
    """
    slow = mx.zeros((600, 600)) @ mx.zeros((600, 600))  # it fails after `async_eval`
    array = mx.linalg.inv(slow[:3, :3], stream=mx.cpu)
    mx.async_eval(array)
    time.sleep(0.5)
    return array


@pytest.mark.mpi(min_size=2)
@pytest.mark.fails_in_mlx
def test_native_input_that_fails_is_refused_and_nothing_is_sent(world):
    bucket, weights = flat_bucket(world, 9), known_weights(world)
    world.barrier()
    before = world.recorder.records[-1].sequence
    if world.is_root:
        with pytest.raises(RuntimeError, match="factorization"):
            world.native.start_all_reduce([failing()], bucket, weights, mx.float32)
        world.native.settle()
    ones = world.native.start_all_reduce([mx.ones(9)], bucket, weights, mx.float32)
    assert values_of(ones.finish()) == {1.0}
    assert world.recorder.records[-1].sequence == before + 1


@pytest.mark.mpi(min_size=2)
@pytest.mark.fails_in_mlx
def test_error_of_other_work_on_the_stream_is_raised_once_and_stops_no_rank(world):
    """Over JACCL on a CPU, collectives share the stream of what computes."""
    chain = Chain(world.native.group, "jaccl", world.recorder)
    local = mx.array([world.rank])
    if world.is_root:
        failed = failing()
        with pytest.raises(RuntimeError, match="factorization"):
            mx.eval(chain.all_gather(local).finish())
        del failed  # MLX would have dropped the error with it
    else:
        mx.eval(chain.all_gather(local).finish())
    assert chain.all_gather(local).finish().tolist() == [[r] for r in range(world.size)]


@pytest.mark.mpi(min_size=2)
def test_all_gather_receives_no_more_than_the_limit_at_once(world, monkeypatch):
    monkeypatch.setattr(chain, "MAX_BYTES", 400)
    started, sizes = world.recorder.started, []

    def record(name, size, dtype, nbytes):
        sizes.append(nbytes)
        started(name, size, dtype, nbytes)

    monkeypatch.setattr(world.recorder, "started", record)
    bucket = flat_bucket(world, 999)
    start, stop = bucket.span(world.rank)
    whole = mx.arange(float(bucket.size))
    full = world.native.start_all_gather([whole[start:stop]], bucket).finish()
    assert_same_bits(full, whole)
    assert len(sizes) > 1
    assert max(sizes) * world.size <= 400


def test_queue_after_an_error_of_earlier_work_goes_on_and_raises_it_at_the_wait(
    world, monkeypatch
):
    """Queueing raises it once, and then what else is pending on the streams."""
    comm = Chain(world.native.group, world.backend, world.recorder)
    calls, async_eval = [], mx.async_eval

    def queue(*arrays):
        calls.append("queue")
        if "settle" not in calls:
            raise RuntimeError("of earlier work")
        async_eval(*arrays)

    monkeypatch.setattr(mx, "async_eval", queue)
    monkeypatch.setattr(device, "settle", lambda *streams: calls.append("settle"))
    comm.queue(mx.ones(3))
    assert calls == ["queue", "settle", "queue"]
    with pytest.raises(RuntimeError, match="of earlier work"):
        comm.wait([], None)
    comm.wait([], None)
