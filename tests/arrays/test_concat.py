"""Arrays to one flat vector and back."""

from itertools import accumulate, pairwise

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
    offsets, shapes = [1, 5, 5, 6][: count + 1], [(2, 2), (0, 3), ()][:count]
    views = Split(offsets, shapes)(mx.arange(9))
    assert [view.shape for view in views] == shapes
    expected = [list(range(start, stop)) for start, stop in pairwise(offsets)]
    assert [view.reshape(-1).tolist() for view in views] == expected


@pytest.mark.parametrize("count", [63, 64, 65, 1000])
@pytest.mark.parametrize(("first", "behind"), [(0, 0), (2, 0), (0, 3)])
def test_split_into_many_views_gives_each_its_elements(count, first, behind):
    """However it makes them: the vector may be longer than the views."""
    shapes = [(2, index % 3) for index in range(count)]
    offsets = [first, *accumulate((2 * n for _, n in shapes), initial=first)][1:]
    flat = mx.arange(offsets[-1] + behind)
    views = Split(offsets, shapes)(flat)
    assert [view.shape for view in views] == shapes
    joined = [number for view in views for number in view.reshape(-1).tolist()]
    assert joined == list(range(first, offsets[-1]))
