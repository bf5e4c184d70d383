"""Manifests: what is written comes back, and what can't be true is refused."""

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxdist.checkpoint import manifest, manifest_check
from mlxdist.checkpoint.manifest import Manifest
from tests.support.checkpoints import example_manifest, put

BLOCK = 4 * 2**20


def test_from_bytes_returns_what_to_bytes_encoded():
    data = manifest.to_bytes(example_manifest())
    assert manifest_check.from_bytes(data) == example_manifest()
    backwards = dict(reversed(json.loads(data).items()))
    assert (
        manifest_check.from_bytes(json.dumps(backwards).encode()) == example_manifest()
    )


def edited(change, sign=True):
    """Return the bytes of a manifest with a change, signed with its new sha256."""
    content = json.loads(manifest.to_bytes(example_manifest()))
    change(content)
    if sign:
        del content["sha256"]
        content = {"sha256": manifest.digest(content), **content}
    return json.dumps(content).encode()


FIRST, CUT = ("arrays", 0), ("arrays", 2)
NAME = ("files", 0, "name")
HOSTILE = {
    "edited": (put("step", 8), "edited or damaged"),
    "version": (put("version", 2), "version 2, and this mlxdist reads version 1"),
    "format": (put("format", "other"), "its format is not"),
    "a key more": (put("more", 1), "unknown field"),
    "slash": (put(*NAME, "a/b.safetensors"), "regex .* `$.files[0].name`"),
    "dots": (put(*NAME, "../x.safetensors"), "regex .* `$.files[0].name`"),
    "dots alone": (put(*NAME, ".."), "regex .* `$.files[0].name`"),
    "hidden": (put(*NAME, ".x.safetensors"), "regex .* `$.files[0].name`"),
    "absolute": (put(*NAME, "/etc/x.safetensors"), "regex .* `$.files[0].name`"),
    "backslash": (put(*NAME, "a\\b.safetensors"), "regex .* `$.files[0].name`"),
    "nul": (put(*NAME, "a\0.safetensors"), "regex .* `$.files[0].name`"),
    "newline": (put(*NAME, "a.safetensors\n"), "regex .* `$.files[0].name`"),
    "no text": (put(*NAME, 5), "Expected `str`, got `int` - at `$.files[0].name`"),
    "twice": (put(*NAME, "rank-00001.safetensors"), "listed twice"),
    "short": (put("files", 1, "nbytes", BLOCK), "has 2 sha256, wanted 1"),
    "negative": (put("files", 0, "nbytes", -1), "`int` >= 0 - at `$.files[0].nbytes`"),
    "huge": (put("files", 0, "nbytes", 2**60), "`int` <= 9007199254740991"),
    "float": (put("step", 7.0), "Expected `int`, got `float` - at `$.step`"),
    "bool": (put("step", True), "Expected `int`, got `bool` - at `$.step`"),
    "sha": (put("files", 0, "sha256", ["ab"]), "regex .* `$.files[0].sha256[0]`"),
    "block": (put("block", 1), "Expected `int` >= 4096 - at `$.block`"),
    "dtype": (put(*FIRST, "dtype", "object"), "regex .* `$.arrays[0].dtype`"),
    "kind": (put(*FIRST, "kind", "../x"), "regex .* `$.arrays[0].kind`"),
    "gap": (put(*CUT, "pieces", 1, 0, 5), "miss elements 4 to 5"),
    "overlap": (put(*CUT, "pieces", 1, 0, 3), "overlap in elements 3 to 4"),
    "end": (put(*CUT, "shape", [11]), "end at 10 of 11"),
    "missing": (put(*CUT, "pieces", []), "end at 0 of 10"),
    "beyond": (put(*FIRST, "pieces", 0, 3, 990), "ends at byte 1014"),
    "no file": (put(*FIRST, "pieces", 0, 2, 9), "in file 9, which is not listed"),
    "on another": (put(*FIRST, "pieces", 0, 3, 190), "overlap in rank-00000"),
    "no key": (put(*CUT, "key", None), "Expected `str`, got `null`"),
    "array twice": (put("arrays", 1, "path", "v"), '"v", ""] is listed twice'),
    "random": (put("random", [[0, 1]]), "not one key of mx.random for each rank"),
    "world": (put("world_size", 0), "Expected `int` >= 1 - at `$.world_size`"),
    "shape": (put(*FIRST, "shape", [-2, -3]), "`int` >= 0 - at `$.arrays[0].shape[0]`"),
    "too large": (put(*FIRST, "shape", [2**50, 2**50]), "too large"),
    "sampler": (put("sampler", [1]), "Expected `object | null`"),
    "not a list": (put("files", None), "Expected `array`, got `null` - at `$.files`"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_from_bytes_refuses_hostile_manifests(kind):
    change, message = HOSTILE[kind]
    pattern = ".*".join(map(re.escape, message.split(" .* ")))
    with pytest.raises(ValueError, match=pattern):
        manifest_check.from_bytes(edited(change, sign=kind != "edited"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"format": "mlxdist checkpoint", "version": 1, "extra": 1e999}',
        b"\xff\xfe",
        b'{"a": 1}',
        b"1" * 9999,
    ],
    ids=lambda data: repr(data[:8]),
)
def test_from_bytes_refuses_what_is_not_a_manifest(data):
    with pytest.raises(ValueError, match=r"it is not|its format|not JSON"):
        manifest_check.from_bytes(data)


def paths(value, path=()):
    """Yield the path of every value inside a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)
    for key, child in items:
        yield from paths(child, (*path, key))


@settings(max_examples=40)
@given(st.data())
def test_from_bytes_accepts_or_refuses_any_signed_edit(data):
    """Any value anywhere gives a consistent manifest or a ValueError."""
    content = json.loads(manifest.to_bytes(example_manifest()))
    path = data.draw(st.sampled_from([p for p in paths(content) if p != ("sha256",)]))
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**60),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=9),
        st.lists(st.integers(-1, 9), max_size=4),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
    change = put(*path, data.draw(junk))
    try:
        parsed = manifest_check.from_bytes(edited(change))
    except ValueError:
        return
    assert isinstance(parsed, Manifest)
    for array in parsed.arrays:
        assert sum(piece.stop - piece.start for piece in array.pieces) == array.size


def test_edited_leaves_the_example_as_it_was():
    """The other tests prove nothing if this fails."""
    before = copy.deepcopy(example_manifest())
    edited(put("step", 9))
    assert example_manifest() == before
    assert manifest_check.from_bytes(edited(lambda content: None)) == before
