"""MLX arrays seen as NumPy arrays, without copies."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.arrays.numpy_view import (
    BLOCK,
    adjacent,
    decode,
    encode,
    from_numpy,
    from_raw,
    raw,
    raw_all,
    sum_of_squares,
    uninitialized,
)
from tests.support.examples import assert_same_bits


@pytest.mark.parametrize(
    "dtype", [mx.float32, mx.bfloat16, mx.float16, mx.float64], ids=str
)
@pytest.mark.parametrize("size", [0, 1, 1000, 2**21])
def test_uninitialized_array_can_be_written_to(size, dtype):
    array = uninitialized(size, dtype)
    assert (array.size, array.dtype) == (size, dtype)
    assert memoryview(array).contiguous
    view = raw(array)
    view[:] = 0
    with mx.stream(mx.cpu):  # float64 exists there alone
        assert not mx.any(array.astype(mx.float32)).item()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8])
def test_from_numpy_of_an_empty_vector_is_contiguous_in_mlx(dtype):
    """MLX counts its own copy as strided, and its sum may then never return."""
    array = from_numpy(np.zeros(0, dtype))
    assert memoryview(array).contiguous
    assert array.dtype == mx.array(np.zeros(1, dtype)).dtype
    assert array.sum().item() == 0


def test_raw_shares_memory_with_the_array():
    array = mx.zeros(6)
    raw(array, np.float32)[2] = 5
    assert array[2].item() == 5


def test_raw_of_strided_and_empty_arrays_is_contiguous():
    assert raw(mx.broadcast_to(mx.array(3.0), (7,)), np.float32).tolist() == [3] * 7
    assert raw(mx.arange(8.0)[1::2], np.float32).tolist() == [1, 3, 5, 7]
    assert raw(mx.zeros((0, 4))).size == 0


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_encode_rounds_as_mlx(dtype):
    high = np.arange(2**16, dtype=np.uint32) << 16
    bits = np.concatenate([high, high + 0x8000, high + 0x7FFF])
    numbers = np.concatenate([bits, bits + 1, bits ^ 0x1FFF]).view(np.float32)
    numbers = numbers[~np.isnan(numbers)]
    out = np.empty(numbers.size, f"u{dtype.size}")
    encode(numbers, dtype, out=out)
    assert_same_bits(mx.array(out).view(dtype), mx.array(numbers).astype(dtype))


@pytest.mark.parametrize(
    ("numbers", "expected"), [([3, 4], 25), ([1e30], np.inf), ([np.nan], np.inf)]
)
def test_sum_of_squares_of_what_is_not_finite_is_infinite(numbers, expected):
    assert sum_of_squares(np.array(numbers, np.float32)) == expected


def test_sum_of_squares_of_several_blocks_counts_each_once():
    assert sum_of_squares(np.ones(2 * BLOCK + 3, np.float32)) == 2 * BLOCK + 3


def test_decode_of_encoded_numbers_returns_them():
    numbers = np.array([0.0, -0.0, 1.5, -3e38, np.inf], np.float32)
    out = np.empty(numbers.size, np.uint16)
    encode(numbers, mx.bfloat16, out=out)
    expected = mx.array(numbers).astype(mx.bfloat16).astype(mx.float32)
    assert_same_bits(mx.array(decode(out, True, np.float32)), expected)
    assert decode(np.ones(2, np.float16), False, np.float32).dtype == np.float32


def test_raw_all_and_from_raw_keep_the_order():
    arrays = [mx.array([1.0, 2.0]), mx.array([[3.0]])]
    for count in (0, 1, 2):
        parts = raw_all(arrays[:count], np.float32)
        assert parts.tolist() == [1.0, 2.0, 3.0][: [0, 2, 3][count]]
    joined = from_raw([raw(array, np.float32) for array in arrays], mx.float32)
    assert joined.tolist() == [1.0, 2.0, 3.0]


def test_adjacent_views_of_one_vector_are_joined_without_a_copy():
    vector = mx.arange(10.0)
    parts = [vector[2:4], vector[4:5].reshape(1, 1), vector[5:9]]
    joined = adjacent(parts)
    assert joined.tolist() == [2, 3, 4, 5, 6, 7, 8]
    raw(vector, np.float32)[3] = 0
    assert joined.tolist() == [2, 0, 4, 5, 6, 7, 8]
    assert adjacent(parts[::-1]) is None
    assert adjacent([parts[0], mx.zeros((2, 0)), parts[1]]) is None
    assert adjacent([vector[::2], vector[9:]]) is None
    parts[1][0] = 7  # in place, which gives the array other memory
    assert adjacent(parts) is None
