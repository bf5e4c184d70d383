"""Paths of leaves: their texts, which are unambiguous, and their order."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.layout.paths import KeyPath

ODD_KEYS = ["", "0", "-1", "01", "a.b", ".", '"', 'a"b', "\\", "/", "<None>", "\ud800"]
KEYS = st.one_of(
    st.sampled_from(ODD_KEYS), st.text(st.characters()), st.integers(-(10**17), 10**17)
)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("layers", 0, "weight"), "layers.0.weight"),
        (("extra", "0", "w"), 'extra."0".w'),
        (("features", "user.age"), 'features."user.age"'),
        (("01", "_x", "a/b"), "01._x.a/b"),
        ((), ""),
        (("",), '""'),
        ((None, (1, "a"), True, 1.5), "<None>.<(1, 'a')>.<True>.<1.5>"),
        (("<None>",), '"<None>"'),
    ],
)
def test_text_of_a_path_quotes_what_is_ambiguous(keys, text):
    assert str(KeyPath(keys)) == text


@given(st.lists(KEYS))
def test_parse_of_a_text_returns_its_path(keys):
    path = KeyPath(keys)
    parsed = KeyPath.parse(path.text)
    assert parsed == path
    assert list(map(type, parsed)) == list(map(type, path))
    path.text.encode()


@given(st.text(alphabet='a0.\\"<'))
def test_parse_of_any_text_returns_a_path(text):
    assert isinstance(KeyPath.parse(text), KeyPath)


def test_dotted_is_the_text_of_mlx():
    assert KeyPath(("a", "b.c", 0, "0")).dotted == "a.b.c.0.0"
    assert KeyPath().dotted == ""


def test_paths_sort_by_key_and_numbers_as_numbers():
    texts = ["embed", "layers.2.b", "layers.2.w", "layers.10.w", 'x."2"', 'x."10"']
    paths = list(map(KeyPath.parse, texts))
    backwards = paths[::-1]
    assert sorted(backwards) == paths
    mixed = [KeyPath((key,)) for key in (1, "1", 2, "a", None, True)]
    backwards = mixed[::-1]
    assert sorted(backwards) == sorted(mixed)


def test_copies_of_a_path_are_equal():
    path = KeyPath(("a", 0))
    assert copy.deepcopy(path) == pickle.loads(pickle.dumps(path)) == path
