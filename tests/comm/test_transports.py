"""Both transports, array by array."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.arrays.numpy_view import encode, raw
from mlxdist.comm import exchange, native
from mlxdist.comm.reduction import Weights
from mlxdist.layout.entries import Entry, split_counts
from mlxdist.layout.sharding import Bucket, make_plan
from tests.support.examples import assert_same_bits

pytestmark = pytest.mark.mpi
SIZES = [0, 1, 2, 3, 7, 1000, 4099]
DTYPES = [mx.float32, mx.float16, mx.bfloat16]


def both(world):
    return [world.native, world.host_transport]


def bucket_of(world, size, owners=False):
    if not owners:
        return Bucket((Entry("a", (size,), "float32"),), world.size)
    entries = [Entry(f"p{i}", (size // 3 + i,), "float32") for i in range(3)]
    plan = make_plan(entries, world.size, strategy="tensors", bucket_size=2**30)
    return plan.buckets[0]


def rank_values(world, size, dtype):
    return [
        mx.array(np.random.default_rng(rank).integers(-9, 9, size)).astype(dtype)
        for rank in range(world.size)
    ]


@pytest.fixture(params=["whole", "in pieces"])
def _rounds(request, monkeypatch):
    """With limits so low that every array goes in several pieces."""
    if request.param == "in pieces":
        monkeypatch.setattr(exchange, "MESSAGE_BYTES", 256)
        monkeypatch.setattr(exchange, "BLOCK", 10)
        monkeypatch.setattr(native, "MAX_COUNT", 100)


@pytest.mark.usefixtures("_rounds")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("owners", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_scatter_and_all_gather(size, owners, dtype, world):
    bucket = bucket_of(world, size, owners)
    values = rank_values(world, bucket.size, dtype)
    weights = tuple(float(rank % 3) + 1 for rank in range(world.size))
    wanted = sum(v.astype(mx.float32) * w for v, w in zip(values, weights, strict=True))
    wanted = wanted / sum(weights)
    start, stop = bucket.span(world.rank)
    for comm in both(world):
        own = values[world.rank].astype(mx.float32 if comm is world.native else dtype)
        chunk = comm.start_reduce_scatter(
            [own], bucket, Weights.known(world.rank, weights)
        ).finish()
        assert chunk.dtype == mx.float32
        assert_same_bits(chunk, wanted[start:stop])
        narrow = chunk.astype(dtype)
        full = comm.start_all_gather([narrow], bucket).finish()
        assert_same_bits(full, wanted.astype(dtype))


def test_nothing_travels_where_there_are_no_elements(world, monkeypatch):
    """Some operations on empty arrays crash in MLX's CUDA build."""
    bucket, empty = bucket_of(world, 0), mx.zeros(0, mx.float16)
    weights = Weights.known(world.rank, (1.0,) * world.size)
    monkeypatch.setattr(world.native, "_chained", None)
    comm = world.native
    assert comm.start_reduce_scatter([empty], bucket, weights).finish().size == 0
    reduced = comm.start_all_reduce([empty], bucket, weights, mx.float16).finish()
    assert reduced.size == 0
    assert comm.start_all_gather([empty], bucket).finish().size == 0
    sent = comm.broadcast(empty.reshape(0, 3), 0)
    assert (sent.shape, sent.dtype) == ((0, 3), mx.float16)


@pytest.mark.usefixtures("_rounds")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_all_sums_over_host_are_a_sum_rounded_once(world, dtype):
    """Each begins behind the next one's sum, and they may be finished late."""
    comm, name = world.host_transport, str(dtype).rpartition(".")[2]
    bucket = Bucket((Entry("a", (333,), name),), world.size)
    weights = Weights.known(world.rank, tuple(range(1, world.size + 1)))
    numbers = mx.random.normal((4, 333), key=mx.random.key(world.rank)).astype(dtype)
    sums = [comm.start_reduce_scatter([n], bucket, weights).finish() for n in numbers]
    wanted = [
        comm.start_all_gather([one.astype(dtype)], bucket).finish() for one in sums
    ]
    pending = [comm.start_all_reduce([one], bucket, weights, dtype) for one in numbers]
    assert comm.sum_scalar(mx.array(1.0)).item() == world.size  # all are under way
    for one, whole, part in zip(pending, wanted, sums, strict=True):
        found = one.finish()
        assert found.dtype == dtype
        assert_same_bits(found, whole)
        squares = np.square(np.array(part).astype(np.float64)).sum()
        assert one.squares == pytest.approx(squares, rel=1e-5)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_numbers_are_rounded_as_mlx_rounds_them(dtype):
    few = np.arange(2**16, dtype=np.uint32)
    bits = np.concatenate([few << 16, (few << 16) + 0x8000, (few << 16) + 0x7FFF])
    numbers = np.concatenate([bits, bits + 1, bits ^ 0x1FFF]).view(np.float32)
    numbers = numbers[~np.isnan(numbers)]
    out = np.empty(numbers.size, f"u{dtype.size}")
    encode(numbers, dtype, out=out)
    assert_same_bits(mx.array(out).view(dtype), mx.array(numbers).astype(dtype))


@pytest.mark.usefixtures("_rounds")
def test_gathers_keep_negative_zero_and_nan(world):
    special = mx.array([-0.0, 0.0, float("nan"), float("-inf"), 1e-45] * 40)
    for owners in (False, True):
        bucket = bucket_of(world, 190, owners)
        start, stop = bucket.span(world.rank)
        values = special[: bucket.size]
        for comm in both(world):
            full = comm.start_all_gather([values[start:stop]], bucket).finish()
            assert_same_bits(full, values)


@pytest.mark.usefixtures("_rounds")
def test_float64_stays_float64(world):
    """On the CPU MLX has it, and a sum in float32 would lose it."""
    bucket = Bucket((Entry("a", (5,), "float64"),), world.size)
    with mx.stream(mx.cpu):
        own = mx.full((5,), 1.0 + 2.0**-40, mx.float64)
    weights = Weights.known(world.rank, (1.0,) * world.size)
    chunk = world.host_transport.start_reduce_scatter([own], bucket, weights).finish()
    assert chunk.dtype == mx.float64
    assert np.array(chunk).tolist() == [1.0 + 2.0**-40] * chunk.size


@pytest.mark.usefixtures("_rounds")
def test_host_adds_in_rank_order(world):
    """1e8 + 1 - 1e8 depends on the order: every rank adds as rank 0 would."""
    order = [1e8, 1.0, -1e8, 1.0]
    mine = order[world.rank % 4]
    wanted = np.float32(0)
    for rank in range(world.size):
        wanted = np.float32(wanted + np.float32(order[rank % 4]))
    wanted /= np.float32(world.size)
    bucket = bucket_of(world, 50)
    weights = Weights.known(world.rank, (1.0,) * world.size)
    summed = world.host_transport.start_reduce_scatter(
        [mx.full((50,), mine)], bucket, weights
    ).finish()
    assert set(np.array(summed).tolist()) <= {float(wanted)}


def test_several_under_way_at_once(world):
    bucket = bucket_of(world, 1000)
    weights = Weights.known(world.rank, (1.0,) * world.size)
    for comm in both(world):
        pending = [
            comm.start_reduce_scatter([mx.full((1000,), float(i))], bucket, weights)
            for i in range(6)
        ]
        for i, one in enumerate(pending):
            assert set(np.array(one.finish()).tolist()) <= {float(i)}


@pytest.mark.parametrize("length", [0, 1, 3, 5000])
def test_bytes_of_any_length(length, world):
    for comm in both(world):
        mine = bytes([world.rank]) * (length * world.rank)
        every = comm.all_gather_bytes(mine)
        assert every == [bytes([r]) * (length * r) for r in range(world.size)]


def test_words_and_scalars(world):
    for comm in both(world):
        words = np.array([2**64 - 1 - world.rank, world.rank], np.uint64)
        every = comm.all_gather_words(words)
        assert every.tolist() == [[2**64 - 1 - r, r] for r in range(world.size)]
        total = comm.sum_scalar(mx.array(world.rank + 0.5))
        assert total.item() == sum(r + 0.5 for r in range(world.size))


def test_fences_on_an_accelerator_change_nothing(world, monkeypatch):
    """As on Metal, where both sides of a collective are evaluated."""
    monkeypatch.setattr(native.mx, "default_device", lambda: mx.gpu)
    weights = Weights.known(world.rank, (1.0,) * world.size)
    bucket = bucket_of(world, 100)
    summed = world.native.start_all_reduce(
        [mx.ones(100)], bucket, weights, mx.float32
    ).finish()
    assert set(np.array(summed).tolist()) == {1.0}


def test_views_share_memory_and_are_never_strided(world):
    array = mx.zeros(6)
    raw(array, np.float32)[2] = 5
    assert array[2].item() == 5
    assert raw(mx.broadcast_to(mx.array(3.0), (7,)), np.float32).tolist() == [3] * 7
    assert raw(mx.arange(8.0)[1::2], np.float32).tolist() == [1, 3, 5, 7]
    assert raw(mx.zeros((0, 4))).size == 0


def test_split_counts():
    assert split_counts(0, 5) == [(0, 0)]
    assert split_counts(11, 5) == [(0, 5), (5, 10), (10, 11)]
    assert split_counts(2**32 + 1, 2**30)[-1] == (2**32, 2**32 + 1)
