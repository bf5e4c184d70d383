"""Paths, order and buckets: pure, without MPI."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.layout.buckets import make_buckets
from mlxdist.layout.entries import Entry, fingerprint, in_order, path_key


def entry(path: str, *shape: int, dtype: str = "float32") -> Entry:
    return Entry(path, shape, dtype)


def test_numbers_in_paths_sort_as_numbers():
    paths = ["layers.10.w", "layers.2.w", "layers.2.b", "embed"]
    ordered = sorted(paths, key=path_key)
    assert ordered == ["embed", "layers.2.b", "layers.2.w", "layers.10.w"]


@given(st.permutations([entry("a", 3), entry("b.0", 2), entry("b.1", 5), entry("c")]))
def test_order_does_not_depend_on_insertion(entries):
    assert [e.path for e in in_order(entries)] == ["a", "b.0", "b.1", "c"]


def test_two_entries_with_one_path_are_refused():
    with pytest.raises(ValueError, match=r"two parameters have the path 'a\.b'"):
        in_order([entry("a.b", 2), entry("a.b", 3)])


def test_buckets_hold_one_dtype_last_layers_first():
    entries = in_order(
        [
            entry("0.w", 4),
            entry("1.w", 4, dtype="bfloat16"),
            entry("2.w", 4),
            entry("3.w", 4),
        ]
    )
    assert make_buckets(entries, bucket_size=32) == [[3, 2], [1], [0]]


def test_a_tensor_larger_than_a_bucket_is_a_bucket():
    assert make_buckets((entry("0", 1), entry("1", 1000)), 16) == [[1], [0]]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["float32", "float16"]))),
    st.integers(1, 300),
)
def test_every_entry_is_in_one_bucket(sizes, bucket_size):
    entries = tuple(entry(str(i), n, dtype=d) for i, (n, d) in enumerate(sizes))
    buckets = make_buckets(entries, bucket_size)
    assert sorted(i for bucket in buckets for i in bucket) == list(range(len(sizes)))
    for bucket in buckets:
        assert len({entries[i].dtype for i in bucket}) == 1
        # It closes as soon as it is full.
        assert sum(entries[i].nbytes for i in bucket[:-1]) < bucket_size


@pytest.mark.parametrize("bucket_size", [0, -1])
def test_a_bucket_has_a_size(bucket_size):
    with pytest.raises(ValueError, match="bucket_size"):
        make_buckets((entry("a", 1),), bucket_size)


def test_fingerprints_tell_descriptions_apart():
    assert fingerprint(["a", [1, 2]]) == fingerprint(["a", [1, 2]])
    assert fingerprint(["a", [1, 2]]) != fingerprint(["a", [2, 1]])
    assert 0 <= fingerprint("x") < 2**64
