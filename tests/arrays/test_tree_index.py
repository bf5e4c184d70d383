"""Leaves of a tree by path, without a search, and trees that have changed."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxdist.arrays.tree_index import TreeIndex
from mlxdist.arrays.trees import leaves_of
from mlxdist.layout.paths import KeyPath

TREE = {
    "embed": 1,
    "layers": [{"w": 2, "b": 3}, {}, {"w": 4, "norm": {"w": 5}}],
    "head": {"w": 6},
}
PATHS = list(leaves_of(TREE))


def test_flat_gives_the_leaves_of_the_tree():
    index = TreeIndex(PATHS, like=TREE)
    assert index.flat(TREE) == leaves_of(TREE)
    assert sorted(index.paths) == sorted(PATHS)


def test_flat_of_keys_in_another_order_is_the_same():
    other = dict(reversed(TREE.items()))
    assert TreeIndex(PATHS, like=TREE).flat(other) == leaves_of(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.pop("embed"),
        lambda tree: tree.update(more=7),
        lambda tree: tree["layers"].append({"w": 7}),
        lambda tree: tree["layers"][0].update(c=7),
        lambda tree: tree["layers"][1].update(w=7),  # it was empty
        lambda tree: tree["layers"][2].update(norm=7),
        lambda tree: tree.update(head=[6]),
    ],
)
def test_flat_of_another_tree_is_refused(change):
    tree = {**TREE, "layers": [dict(x) for x in TREE["layers"]]}
    change(tree)
    with pytest.raises((LookupError, TypeError)):
        TreeIndex(PATHS, like=TREE).flat(tree)


def test_flat_without_an_example_allows_more_leaves():
    assert TreeIndex([KeyPath(("head", "w"))]).flat(TREE) == {("head", "w"): 6}


def test_rebuilt_keeps_the_order_of_keys_and_lists():
    index = TreeIndex(PATHS, like=TREE)
    new = index.rebuilt(TREE, {path: path.text for path in PATHS})
    assert list(leaves_of(new)) == PATHS
    assert leaves_of(new) == {path: path.text for path in PATHS}
    assert isinstance(new["layers"], list)


def test_rebuilt_keeps_a_leaf_between_two_containers_in_its_place():
    tree = {"first": {"w": 1}, "scale": 2, "last": [3]}
    paths = list(leaves_of(tree))
    new = TreeIndex(paths, like=tree).rebuilt(tree, leaves_of(tree))
    assert list(new) == list(tree)
    assert list(leaves_of(new)) == paths


def test_slots_of_tied_weights_are_the_last_ones():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 2, bias=False)
            self.other = self.one

    model = Tied()
    paths = list(leaves_of(model.parameters()))
    slots = TreeIndex(paths).slots(model)
    assert list(slots) == paths[-1:]
    container, key = slots[paths[-1]]
    container[key] = mx.zeros((2, 2))
    assert not mx.any(model.one.weight).item()
