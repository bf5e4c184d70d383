"""The device that MLX computes on: which one it is, and how to evaluate on it."""

from __future__ import annotations

from contextlib import suppress

import mlx.core as mx

from .types import Array, Dtype, Tree


def on_cpu() -> bool:
    """Return whether MLX's default device is the CPU."""
    return bool(mx.default_device() == mx.cpu)


def needs_fences(backend: str) -> bool:
    """Return whether both sides of a collective have to be evaluated at once.

    That is so if MLX computes on an accelerator and the collective runs on the CPU, as
    with all backends but NCCL. Metal kills a command buffer that waits for seconds, as
    one does that is queued behind a collective. On CUDA a collective reads its input
    before kernels that are still queued have written it, and what is queued behind a
    collective may never wake up.
    """
    return backend != "nccl" and not on_cpu()


def evaluate(arrays: Tree) -> None:
    """Evaluate arrays, or queue them where an accelerator has a queue of its own.

    A CPU allocates an array's memory when its task is queued, so queueing all buckets
    at once would hold all of them; there each is evaluated before the next is queued.
    """
    (mx.eval if on_cpu() else mx.async_eval)(arrays)


def settle(*streams: mx.Stream) -> None:
    """Wait for what is queued on the default and other streams, and drop its errors.

    MLX keeps one error in each stream that it went through, and raises it in whatever
    is evaluated next.
    """
    for stream in (mx.default_stream(mx.default_device()), *streams):
        with suppress(RuntimeError):
            mx.synchronize(stream)


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


def fits_one_kernel(dtype: Dtype) -> bool:
    """Return whether one fused kernel beats MLX's own kernels one after the other.

    On a CPU a fused kernel is a scalar loop. It converts 16-bit numbers at every
    operation and takes three times as long as the vectorized kernels do together.
    """
    return bool(dtype.size > 2) or not on_cpu()
