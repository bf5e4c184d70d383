"""The device that MLX computes on: which one it is, and how to evaluate on it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import mlx.core as mx

from .concat import join
from .types import Array, Dtype, Pieces, Tree

_FAILED_BEFORE = "a computation that was queued before has failed"
_MOST_ERRORS = 8  # that one call takes from MLX
_errors: list[str] = []  # that MLX raised in `clear_cache`


def on_cpu() -> bool:
    """Return whether MLX's default device is the CPU."""
    return bool(mx.default_device() == mx.cpu)


def needs_fences(backend: str) -> bool:
    """Return whether the host has to wait on both sides of a collective.

    That is so if MLX computes on an accelerator and the collective runs on the CPU, as
    with all backends but NCCL. Before: on CUDA a collective looks up its input's memory
    when it is queued, before kernels that are still queued have written it. After:
    Metal kills a command buffer that waits for seconds, as one does that is queued
    behind a collective (MLX #4475); on CUDA it may never wake up. With the next bucket
    queued, and the wait after a collective only where its result is used, the
    accelerator is not idle meanwhile.
    """
    return backend != "nccl" and not on_cpu()


def packed(arrays: Pieces) -> Pieces:
    """Return arrays end to end as one where the copy costs nothing: on an accelerator.

    There the CPU also looks at one block of memory instead of many, each of which CUDA
    would move by itself.
    """
    return arrays if on_cpu() or len(arrays) < 2 else [join(arrays)]


def longest_wait() -> float:
    """Return for how many seconds work may be queued behind data from other ranks.

    Metal kills a command buffer that waits for about 5 s (MLX #4475). On CUDA what is
    queued behind work of a CPU may never wake up.
    """
    if on_cpu():
        return math.inf
    return 1.0 if mx.metal.is_available() else 0.0


def evaluate(arrays: Tree) -> None:
    """Evaluate arrays, or queue them where an accelerator has a queue of its own.

    A CPU allocates an array's memory when its task is queued, so queueing all buckets
    at once would hold all of them; there each is evaluated before the next is queued.
    """
    (mx.eval if on_cpu() else mx.async_eval)(arrays)


def buckets_ahead() -> int:
    """Return how many buckets are queued behind the one that the host waits for.

    With one, an accelerator is not idle until the host has noticed that a bucket is
    evaluated, and has queued the next one. Each is queued by itself: what is queued
    together is ready together. Not more, as MLX blocks the caller once its queue is
    full. None on a CPU, where it takes memory, and where an error of what is queued
    would be raised while the bucket before it is sent.
    """
    return 0 if on_cpu() else 1


def part_size() -> int:
    """Return how many elements of a large tensor are stepped at once, at most.

    On a CPU a part and its state stay in the second-level cache. On an accelerator each
    part costs two waits of the host, about 0.5 ms, in which the memory moves some 100
    MB; there a part of float32 has 128 MiB.
    """
    return 2**18 if on_cpu() else 2**25


def parts_ahead() -> int:
    """Return how many parts are queued behind the one that the host writes.

    A CPU has cores for both. On an accelerator the state is written by MLX, which does
    that in place only where no part that is queued still reads it.
    """
    return 1 if on_cpu() else 0


@contextmanager
def unlimited_memory() -> Iterator[None]:
    """Queue operations without waiting for those that are queued.

    MLX waits for all of them while more memory is in use than `mx.set_memory_limit`
    allows. Two ranks that both wait until a message is sent, each before it queues the
    receive of the other's, would never go on.
    """
    limit = mx.set_memory_limit(sys.maxsize)
    try:
        yield
    finally:
        mx.set_memory_limit(limit)


def settle(*streams: mx.Stream) -> None:
    """Wait for what is queued on the default and other streams, and drop its errors.

    MLX keeps one error in each stream that it went through, and raises it in whatever
    is queued next: a synchronization that raises it has not waited.
    """
    defaults = [mx.default_stream(mx.default_device())]
    if not on_cpu():
        defaults.append(mx.default_stream(mx.cpu))  # of what only a CPU computes
    for stream in (*defaults, *streams):
        for _ in range(_MOST_ERRORS):
            with suppress(RuntimeError):
                mx.synchronize(stream)
                break


def recover(arrays: Iterable[object]) -> None:
    """Make arrays usable again, in place, after an error of what is computed from them.

    MLX raises an error of a CPU's stream where it queues the next operation. Where that
    is the event at the end of `mx.async_eval`, the event never comes, and whoever waits
    for one of the arrays that were queued with it waits for ever. After
    `nn.value_and_grad` a model has lazy copies of its parameters, which are among them.
    Another operation on their stream does not wait for the event.
    """
    settle()
    lost = [array for array in arrays if isinstance(array, mx.array)]
    for array in lost:
        array[...] = mx.stop_gradient(array)
    with suppress(RuntimeError):
        mx.eval(lost)


def pending_error() -> str | None:
    """Return the errors of computations that were queued before and failed, or None.

    MLX would raise one where it queues the next operation, in a call that has nothing
    to do with it. Returns each once. Waits for nothing.
    """
    try:
        mx.async_eval(mx.stop_gradient(_NOTHING, stream=mx.cpu))
    except RuntimeError as error:
        _errors.append(str(error))
    if not _errors:
        return None
    texts = "; ".join(dict.fromkeys(_errors))
    _errors.clear()
    return f"{_FAILED_BEFORE}: {texts}"


def clear_cache() -> None:
    """Free the memory that MLX keeps for new arrays. Waits for all streams of a CPU.

    MLX raises their errors here, on one rank, in a call that may have succeeded on all.
    They are kept for `pending_error`, and printed: no call may follow.
    """
    for _ in range(_MOST_ERRORS):
        try:
            mx.clear_cache()
            break
        except RuntimeError as error:
            _errors.append(str(error))
            print(f"mlxdist: {_FAILED_BEFORE}: {error}", file=sys.stderr)


_NOTHING = mx.zeros(1, mx.uint8, stream=mx.cpu)
mx.eval(_NOTHING)


def start_evaluation(arrays: list[Array]) -> bool:
    """Queue arrays for evaluation.

    Returns:
        False while `mx.compile` traces: a traced array has no value, and MLX offers no
        other way to ask.
    """
    try:
        mx.async_eval(arrays)
    except ValueError:
        return False
    return True


def have_values(arrays: list[Array]) -> bool:
    """Return whether arrays have values, which they lack while `mx.compile` traces.

    Queues them for evaluation.

    Raises:
        RuntimeError: where one of them can't be evaluated. The others can be used.
    """
    try:
        return start_evaluation(arrays)
    except RuntimeError:
        recover(arrays)
        raise


def may_be_tracing() -> bool:
    """Return whether this thread may be inside `mx.compile` or `mx.grad`; is cheap.

    There MLX refuses to queue what has no value with another error than outside.
    """
    try:
        mx.async_eval(_WITHOUT_VALUE)
    except RuntimeError:
        return False
    except ValueError:
        pass
    return True


def _arrays_without_value() -> list[Array]:
    """Return what `mx.compile` traces with; nothing where compiling is disabled."""
    arrays: list[Array] = []

    def trace(array: Array) -> Array:
        arrays.append(array)
        return array

    mx.compile(trace)(mx.array(0))
    return arrays


_WITHOUT_VALUE = _arrays_without_value()


def fits_one_kernel(dtype: Dtype) -> bool:
    """Return whether one fused kernel beats MLX's own kernels one after the other.

    On a CPU a fused kernel is a scalar loop. It converts 16-bit numbers at every
    operation and takes three times as long as the vectorized kernels do together.
    """
    return bool(dtype.size > 2) or not on_cpu()


def fuses_blocks() -> bool:
    """Return whether one fused kernel is fast where blocks have a scale each.

    On a CPU it computes an index for each array of another shape at each element. There
    the host widens and quantizes blocks, around a kernel with arrays of one shape.
    """
    return not on_cpu()
