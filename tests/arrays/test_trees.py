"""Trees as flat paths, and back; their digests."""

import mlx.core as mx
import pytest

from mlxdist.arrays.trees import (
    all_parameters,
    cut,
    digest,
    is_replaceable,
    leaves_of,
    make_slot,
    nested,
    put,
    rebuild,
    unflatten,
)
from mlxdist.layout.paths import KeyPath
from mlxdist.layout.sharding import Piece
from tests.support.plans import make_entry

TREE = {"b": [1, {"c": 2}], "a": (3, [4]), "0": {}}


def test_unflatten_gives_the_tree_of_its_leaves():
    assert unflatten(leaves_of({"b": [1, {"c": 2}], "a": [3]})) == {
        "b": [1, {"c": 2}],
        "a": [3],
    }
    assert unflatten({KeyPath(("a", 2)): 1}) == {"a": [{}, {}, 1]}
    assert unflatten({KeyPath(("a", "0")): 1}) == {"a": {"0": 1}}
    assert unflatten({KeyPath(): 1}) == 1


def test_rebuild_keeps_the_order_of_keys():
    new = rebuild(TREE, {path: path.text for path in leaves_of(TREE)})
    assert list(new) == list(TREE)
    assert new["a"] == ("a.0", ["a.1.0"])


def test_nested_leaves_out_what_has_no_leaf_and_keeps_positions():
    leaves = {KeyPath(("b", 1, "c")): 9, KeyPath(("a", 0)): 8}
    assert nested(leaves, TREE) == {"b": [{}, {"c": 9}], "a": (8, {}), "0": {}}
    assert nested({}, {"x": [1]}) == {}


def test_put_replaces_a_leaf_and_the_tuple_around_it():
    tree = {"a": [(1, 2)], "b": 3}
    put(tree, ("a", 0, 1), 9)
    put(tree, ("b",), 8)
    assert tree == {"a": [(1, 9)], "b": 8}
    assert is_replaceable(tree, KeyPath(("a", 0, 1)))
    assert not is_replaceable((1, (2, 3)), KeyPath((1, 0)))


def test_make_slot_adds_the_containers_that_lack():
    tree = {"a": [{}]}
    for path in (("a", 2, "x"), ("b", 1)):
        make_slot(tree, path)
    assert tree == {"a": [{}, None, {}], "b": [None, None]}


def test_cut_takes_a_slice_of_elements_and_whole_tensors():
    array = mx.arange(6).reshape(2, 3)
    piece = Piece(make_entry("a", (2, 3)), 1, 4, 0)
    assert cut(array, piece, "elements").tolist() == [1, 2, 3]
    assert cut(array, piece, "tensors").shape == (2, 3)


@pytest.mark.parametrize(
    "other",
    [
        {"a": mx.zeros((2, 3)), "b": mx.ones(1)},  # a shape
        {"a": mx.zeros(6, mx.int32), "b": mx.ones(1)},  # a dtype
        {"c": mx.zeros(6), "b": mx.ones(1)},  # a path
        {"a": mx.array([0.0] * 5 + [-0.0]), "b": mx.ones(1)},  # a bit
    ],
)
def test_digest_of_another_tree_differs(other):
    tree = {"b": mx.ones(1), "a": mx.zeros(6)}
    assert (digest(tree) == digest(dict(reversed(tree.items())))).all()
    assert (digest(tree) != digest(other)).any()
    assert list(all_parameters(tree)) == [("a",), ("b",)]
