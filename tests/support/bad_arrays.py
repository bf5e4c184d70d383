"""Arrays that MLX can't evaluate."""

import threading

import mlx.core as mx


def array_of_a_thread_that_ended() -> mx.array:
    """Return ones that MLX can't queue any more."""
    lazy = []
    thread = threading.Thread(target=lambda: lazy.append(mx.ones((3, 3)) * 2))
    thread.start()
    thread.join()
    return lazy[0]


def inverse_of_zeros() -> mx.array:
    """Return an array that MLX queues, and that fails once it is computed."""
    return mx.linalg.inv(mx.zeros((3, 3)), stream=mx.cpu)
