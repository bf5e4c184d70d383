"""Arrays to one flat vector and back, compiled and with one array alone."""

import mlx.core as mx
import pytest

from mlxdist.arrays.concat import Join, Split


@pytest.mark.parametrize("count", [0, 1, 3])
def test_join_gives_a_flat_vector_of_its_dtype(count):
    parts = [mx.full((2, index), float(index)) for index in range(1, 1 + count)]
    joined = Join("bfloat16")(parts)
    assert joined.dtype == mx.bfloat16
    expected = [float(index) for index in range(1, 1 + count) for _ in range(2 * index)]
    assert joined.tolist() == expected


@pytest.mark.parametrize("count", [1, 3])
def test_split_gives_views_in_their_shapes(count):
    bounds, shapes = [(1, 5), (5, 5), (6, 7)][:count], [(2, 2), (0, 3), ()][:count]
    views = Split(bounds, shapes)(mx.arange(9))
    assert [view.shape for view in views] == shapes
    expected = [list(range(start, stop)) for start, stop in bounds]
    assert [view.reshape(-1).tolist() for view in views] == expected
