"""Vectors cut from large blocks."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.arrays.arena import ALONE_FROM, BLOCK_BYTES, Arena


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32], ids=str)
def test_allocated_vectors_of_any_size_are_apart_and_keep_what_is_written(dtype):
    arena, whole = Arena(), BLOCK_BYTES // dtype.size
    sizes = [0, 1, 63, 64, 1000, whole // 2, whole // 2 - 100, 7, whole // 2 + 1, whole]
    sizes += [ALONE_FROM // dtype.size - 1] * (BLOCK_BYTES // ALONE_FROM + 1)
    vectors = [arena.allocate(size, dtype) for size in sizes]
    for number, vector in enumerate(vectors):
        vector.bits[:] = number
    for number, (size, vector) in enumerate(zip(sizes, vectors, strict=True)):
        assert (vector.array.size, vector.array.dtype) == (size, dtype)
        bits = np.array(vector.array.view(mx.uint16))
        assert set(bits.tolist()) <= {number, 0}
        assert bits[:1].tolist() == [number] * min(size, 1)


def test_small_vectors_share_a_block():
    arena = Arena()
    first, second = (arena.allocate(100, mx.float32) for _ in range(2))
    offset = second.bits.ctypes.data - first.bits.ctypes.data
    assert offset == 128 * 4


def test_large_vectors_keep_no_memory_but_their_own():
    arena = Arena()
    kept = arena.allocate(ALONE_FROM // 4, mx.float32)
    before = mx.get_active_memory()
    dropped = arena.allocate(ALONE_FROM // 4, mx.float32)
    assert kept.array.nbytes == ALONE_FROM
    del dropped
    assert mx.get_active_memory() <= before
