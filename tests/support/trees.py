"""Trees of parameters with keys and containers of all kinds that MLX trains."""

from collections import OrderedDict
from typing import Any, NamedTuple

import mlx.core as mx

from mlxdist.arrays.trees import leaves_of, structure
from tests.support.examples import assert_same_bits


class Layer(NamedTuple):
    """Named tuples fail in MLX's own `init` from the second call on (mlx#2845)."""

    w: Any
    b: Any


def array(*shape: int) -> mx.array:
    return mx.arange(float(mx.zeros(shape).size)).reshape(shape) - 3


def odd_trees() -> dict[str, Any]:
    """Return trees by what is odd about them. Each call returns new arrays."""
    return {
        "digits": {"extra": {"0": array(2, 3), "2": array(5)}, "top": array(3)},
        "integers": {"extra": {0: array(2, 3), 7: array(5), "7": array(2)}},
        "dots": {"user.age": {"w": array(5)}, "user": {"age": {"w": array(3, 3)}}},
        "quotes": {'"': array(3), 'a"b': {"": array(2), "a/b": array(3)}, "": array(5)},
        "other keys": {("user", 1): array(3), None: [array(4)], 1.5: array(2)},
        "tuples": {"a": (array(2, 3), [array(5)]), "c": ({"d": array(3)}, {})},
        "named": {"a": Layer(array(2, 3), array(3)), "b": [Layer(array(5), array(1))]},
        "empty": {"a": array(3), "b": [], "c": {}, "d": ({}, []), "e": [{}, array(4)]},
        "ordered": OrderedDict(z=array(5), a=OrderedDict(q=array(2, 3))),
    }


def assert_same_trees(one: Any, other: Any) -> None:
    """Assert that two trees have the same keys, containers and bits."""
    assert_same_bits(_leaves_by_path(one), _leaves_by_path(other))
    assert _description(structure(one)) == _description(structure(other))


def _leaves_by_path(tree: Any) -> dict[str, mx.array]:
    """Return the leaves by the texts of their paths, which are unambiguous."""
    return {path.text: leaf for path, leaf in leaves_of(tree).items()}


def _description(tree: Any) -> str:
    """Describe the containers of a tree, with dicts in one order."""
    if isinstance(tree, dict):
        items = [f"{key!r}: {_description(child)}" for key, child in tree.items()]
        return f"dict({sorted(items)})"
    if isinstance(tree, list | tuple):
        return f"{type(tree).__name__}({list(map(_description, tree))})"
    return repr(tree)
