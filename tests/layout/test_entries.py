"""Entries, their order, fingerprints and ranges: without MLX and MPI."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.layout.entries import Entry, fingerprint, in_order, split_counts
from mlxdist.layout.paths import KeyPath
from tests.support.plans import make_entry


def entry(path: str, *shape: int) -> Entry:
    return make_entry(path, shape, "float32")


@given(st.permutations([entry("a", 3), entry("b.0", 2), entry("b.1", 5), entry("c")]))
def test_in_order_of_any_permutation_is_the_same(entries):
    assert [str(e.path) for e in in_order(entries)] == ["a", "b.0", "b.1", "c"]


def test_in_order_of_two_entries_with_one_path_is_refused():
    with pytest.raises(ValueError, match=r"two parameters have the path a\.b: "):
        in_order([entry("a.b", 2), entry("a.b", 3)])


def test_in_order_of_two_paths_with_one_text_is_refused():
    """Errors and checkpoints could not tell them apart."""

    class Key:
        def __repr__(self):
            return "Key()"

    first, second = (Entry(KeyPath((Key(),)), (2,), "float32") for _ in range(2))
    assert first.path != second.path
    with pytest.raises(ValueError, match=r"two parameters have the path <Key\(\)>: "):
        in_order([first, second])


def test_fingerprint_of_a_dict_does_not_depend_on_its_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_fingerprint_of_another_description_differs():
    assert fingerprint(["a", [1, 2]]) == fingerprint(["a", [1, 2]])
    assert fingerprint(["a", [1, 2]]) != fingerprint(["a", [2, 1]])
    assert 0 <= fingerprint("x") < 2**64


def test_split_counts_gives_ranges_up_to_the_limit():
    assert split_counts(0, 5) == [(0, 0)]
    assert split_counts(11, 5) == [(0, 5), (5, 10), (10, 11)]
    assert split_counts(2**32 + 1, 2**30)[-1] == (2**32, 2**32 + 1)
