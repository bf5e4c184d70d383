"""Exchanges that run during the backward pass, as between hosts and on accelerators."""

import threading
import time
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from mlxdist.comm import Recorder, Traffic
from mlxdist.comm.exchange import Exchange, Round
from mlxdist.comm.progress import Progress
from mlxdist.world import World
from tests.support.attempts import agreed, any_of
from tests.support.buckets import flat_bucket
from tests.support.compiled import assert_as_eager
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
)

pytestmark = pytest.mark.mpi


@pytest.fixture
def overlapping_world(world, mpi_group):
    """A world of the same ranks, as if each were on a host of its own."""
    return World(mpi_group, "mpi", world.duplicate(), Recorder(), overlaps=True)


def slow_array(seconds):
    """Return an array that takes about so long to compute."""
    matrix = mx.random.normal((400, 400))
    mx.eval(matrix)
    durations = []
    for _ in range(5):
        began = time.perf_counter()
        mx.eval(matrix @ matrix)
        durations.append(time.perf_counter() - began)
    rounds = max(2, round(seconds / min(durations)))
    for _ in range(rounds):
        matrix = mx.tanh(matrix @ matrix)
    return matrix


def integer_tree(seed):
    key = mx.random.key(seed)
    shapes = {"a": (400, 400), "b": (17,), "c": (900, 300), "d": (3, 3)}
    return {
        name: mx.random.randint(-8, 8, shape, key=key).astype(mx.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def forbid_changes_of_device(monkeypatch):
    """Fail where anything changes the default device, which all threads share."""

    def forbidden(*_, **__):
        raise AssertionError("the default device or stream was changed")

    for name in ("stream", "set_default_device", "set_default_stream"):
        monkeypatch.setattr(mx, name, forbidden)


@pytest.fixture
def forbid_mlx_in_other_threads(monkeypatch):
    """Fail where a thread of ours makes or evaluates an array."""

    def guarded(function):
        def call(*args, **options):
            assert threading.current_thread() is threading.main_thread()
            return function(*args, **options)

        return call

    for name in ("eval", "async_eval", "load", "zeros", "view", "contiguous"):
        monkeypatch.setattr(mx, name, guarded(getattr(mx, name)))


@pytest.mark.usefixtures("forbid_mlx_in_other_threads")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@each_shard
def test_thread_of_the_exchanges_evaluates_nothing(shard, dtype, overlapping_world):
    """MLX's queue may be full of what waits for this very thread."""
    optimizer = distributed(
        overlapping_world, shard=shard, transport="host", overlap_forward=False
    )
    trees = (integer_tree(seed) for seed in range(2))
    tree, grads = ({n: x.astype(dtype) for n, x in t.items()} for t in trees)
    optimizer.init(tree)
    mx.eval(optimizer.apply_gradients(grads, tree))


@pytest.mark.usefixtures("forbid_changes_of_device")
@each_transport
@each_shard
def test_step_leaves_the_default_device_and_stream_alone(
    shard, transport, overlapping_world
):
    before = mx.default_device(), mx.default_stream(mx.default_device())
    optimizer = distributed(overlapping_world, shard=shard, transport=transport)
    tree = integer_tree(0)
    optimizer.init(tree)
    mx.eval(optimizer.apply_gradients(integer_tree(1), tree))
    assert (mx.default_device(), mx.default_stream(mx.default_device())) == before


@each_transport
@each_shard
def test_step_inside_a_stream_of_the_user_gives_the_same_and_leaves_it(
    shard, transport, overlapping_world
):
    trees = []
    for stream in (mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)):
        optimizer = distributed(overlapping_world, shard=shard, transport=transport)
        tree = integer_tree(0)
        optimizer.init(tree)
        with mx.stream(stream):
            trees.append(optimizer.apply_gradients(integer_tree(1), tree))
            assert mx.default_stream(mx.cpu) == stream
        mx.eval(trees[-1])
    assert_same_bits(*trees)


def test_traffic_counted_by_two_threads_is_the_sum_of_both():
    class SlowNumber(int):
        """A number whose addition lets another thread run."""

        def __radd__(self, other):
            time.sleep(1e-4)
            return int(other) + int(self)

    traffic = Traffic()

    def count():
        for _ in range(20):
            traffic.add(SlowNumber(2))

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traffic == Traffic(collectives=40, bytes_sent=80)


class Failing(Exchange):
    """An exchange that fails once the progress thread looks at it."""

    def __init__(self, world):
        record = Recorder().started("broken")
        super().__init__(world.host_transport, flat_bucket(world, 7), 4, record)
        self.has_failed = threading.Event()

    @property
    def ready(self):
        if threading.current_thread() is not threading.main_thread():
            self.has_failed.set()
            raise OSError("the wire was cut")
        return False


@pytest.mark.timeout(60)
def test_error_of_the_progress_thread_is_raised_by_whoever_waits(world):
    progress = Progress(overlaps=True, recorder=Recorder())
    exchange = Failing(world)
    progress.add(exchange)
    assert exchange.has_failed.wait(30)
    with pytest.raises(OSError, match="the wire was cut"):
        progress.wait(exchange)
    later = partial(progress.add, Failing(world))
    for call in (progress.drain, later):
        with pytest.raises(OSError, match="the wire was cut"):
            call()
    progress.close()


class Looked(Exchange):
    """An exchange that notes which threads look at it, and is complete at once."""

    def __init__(self, world):
        record = Recorder().started("looked")
        super().__init__(world.host_transport, flat_bucket(world, 7), 4, record)
        self.threads = []

    def post(self, start, stop):
        return Round(start, stop, 0, [])

    def take(self, arrived):
        self.threads.append(threading.current_thread())
        super().take(arrived)


@pytest.mark.timeout(60)
def test_exchange_is_completed_by_the_thread_while_the_main_thread_computes(world):
    progress = Progress(overlaps=True, recorder=Recorder())
    exchange = Looked(world)
    progress.add(exchange)
    deadline = time.monotonic() + 30
    while not exchange.complete and time.monotonic() < deadline:
        time.sleep(0.001)
    assert exchange.complete
    assert threading.main_thread() not in exchange.threads
    progress.close()


@pytest.mark.timeout(60)
def test_exchange_is_completed_by_the_main_thread_where_it_waits(world, monkeypatch):
    monkeypatch.setattr("mlxdist.comm.progress.PATIENCE", 30.0)
    progress = Progress(overlaps=True, recorder=Recorder())
    exchange = Looked(world)
    progress.add(exchange)
    progress.wait(exchange)
    assert set(exchange.threads) == {threading.main_thread()}
    progress.close()


@pytest.mark.parametrize("overlaps", [False, True])
def test_progress_that_was_closed_refuses_exchanges(overlaps, world):
    progress = Progress(overlaps=overlaps, recorder=Recorder())
    progress.close()
    for call in (progress.drain, partial(progress.add, Failing(world))):
        with pytest.raises(RuntimeError, match="this world is closed"):
            call()


class SendTimes:
    """The times at which a transport has sent more bytes, while in the context."""

    def __init__(self, traffic):
        self._traffic = traffic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.times = []

    def _watch(self):
        sent = self._traffic.bytes_sent
        while not self._stop.wait(0.001):
            if self._traffic.bytes_sent != sent:
                sent = self._traffic.bytes_sent
                self.times.append(time.perf_counter())

    def __enter__(self):
        self._thread.start()
        return self.times

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@each_shard
def test_exchange_of_gradients_not_evaluated_yet_gives_the_bits_of_mlx(
    shard, overlapping_world
):
    optimizer = distributed(overlapping_world, shard=shard, transport="host")
    reference = optim.AdamW(1e-2)
    tree = twin = integer_tree(0)
    optimizer.init(tree)
    reference.init(twin)
    for step in range(1, 4):
        lazy = {name: leaf * 1.0 for name, leaf in integer_tree(step).items()}
        tree = optimizer.apply_gradients(lazy, tree)
        twin = reference.apply_gradients(integer_tree(step), twin)
    assert_as_eager(tree, twin)


@pytest.mark.mpi(min_size=2)
def test_exchange_of_the_first_bucket_starts_before_the_last_gradient_is_computed(
    overlapping_world,
):
    optimizer = distributed(overlapping_world, optim.SGD(0.1), shard=True)
    tree = integer_tree(0)
    optimizer.init(tree)
    # The first update compares the gradients of all ranks, and evaluates them.
    tree = optimizer.apply_gradients(integer_tree(1), tree)

    def starts_before():
        grads = {**integer_tree(2), "a": slow_array(0.5)}
        overlapping_world.barrier()
        began = time.perf_counter()
        with SendTimes(overlapping_world.host_transport.traffic) as times:
            mx.eval(optimizer.apply_gradients(grads, tree))
            half = (time.perf_counter() - began) / 2
        starts = [seconds - began for seconds in times]
        holds = bool(starts) and starts[0] < half < starts[-1]
        return agreed(holds, overlapping_world)

    assert any_of(6, starts_before)
