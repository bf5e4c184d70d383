"""Which tensors share a bucket: without MLX and MPI."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.layout.buckets import make_buckets
from mlxdist.layout.entries import Entry, in_order
from tests.support.plans import make_entry


def entry(path: str, *shape: int, dtype: str = "float32") -> Entry:
    return make_entry(path, shape, dtype)


def test_make_buckets_groups_one_dtype_with_the_last_layers_first():
    entries = in_order(
        [
            entry("0.w", 4),
            entry("1.w", 4, dtype="bfloat16"),
            entry("2.w", 4),
            entry("3.w", 4),
        ]
    )
    assert make_buckets(entries, bucket_size=32) == [[3, 2], [1], [0]]


def test_make_buckets_gives_a_tensor_above_the_size_a_bucket_of_its_own():
    assert make_buckets((entry("0", 1), entry("1", 1000)), 16) == [[1], [0]]


def test_make_buckets_gives_a_tensor_of_a_mebibyte_a_bucket_of_its_own():
    entries = (entry("0", 1), entry("1", 2**18), entry("2", 2**18 - 1), entry("3", 1))
    assert make_buckets(entries, 8 * 2**20) == [[1], [3, 2, 0]]


def test_make_buckets_of_a_least_size_packs_tensors_of_a_mebibyte():
    entries = [entry(str(index), 2**18) for index in range(4)]
    assert make_buckets(entries, 16, least_size=2 * 2**20) == [[3, 2], [1, 0]]


def test_make_buckets_follows_the_order_in_which_the_model_uses_its_layers():
    entries = (entry("embed", 4), entry("head", 4), entry("layers", 4))
    order = [entries[index].path for index in (0, 2, 1)]
    assert make_buckets(entries, 16, order) == [[1], [2], [0]]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["float32", "float16"]))),
    st.integers(1, 300),
)
def test_make_buckets_puts_every_entry_into_one_bucket(sizes, bucket_size):
    entries = tuple(entry(str(i), n, dtype=d) for i, (n, d) in enumerate(sizes))
    buckets = make_buckets(entries, bucket_size)
    assert sorted(i for bucket in buckets for i in bucket) == list(range(len(sizes)))
    for bucket in buckets:
        assert len({entries[i].dtype for i in bucket}) == 1
        # It closes as soon as it is full.
        assert sum(entries[i].nbytes for i in bucket[:-1]) < bucket_size


@pytest.mark.parametrize("bucket_size", [0, -1])
def test_make_buckets_of_no_bytes_is_refused(bucket_size):
    with pytest.raises(ValueError, match="bucket_size"):
        make_buckets((entry("a", 1),), bucket_size)
