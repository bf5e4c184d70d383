"""Manifests: what is written comes back, and what can't be true is refused."""

import copy
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.checkpoint import manifest
from mlxdist.checkpoint import manifest_check as parsing
from mlxdist.checkpoint import partition as contents
from mlxdist.checkpoint.manifest import Leaf, Manifest, Piece, SavedArray, SavedFile
from mlxdist.checkpoint.partition import Part
from mlxdist.layout.entries import Entry
from mlxdist.layout.sharding import make_plan

BLOCK = 4 * 2**20
SHA = "ab" * 32


def example():
    """Two files, an array in each, and one that is cut over both."""
    return Manifest(
        step=7,
        saved_at="2026-01-31T12:00:00Z",
        world_size=2,
        strategy="elements",
        layout="0123456789abcdef",
        versions={"mlx": "1"},
        optimizer=(Leaf("", "AdamW", ("eps = 1",), ("w",)),),
        counters={"updates": 7},
        random=((0, 1), (2, 3)),
        sampler=None,
        extra={"a": [1, 2.5]},
        block=BLOCK,
        disks=(0, 0),
        files=(
            SavedFile("rank-00000.safetensors", 1000, (SHA,)),
            SavedFile("rank-00001.safetensors", BLOCK + 1, (SHA, SHA)),
        ),
        arrays=(
            SavedArray("parameters", "v", "", "float32", (2, 3), (Piece(0, 6, 0, 80),)),
            SavedArray("parameters", "none", "", "float32", (0, 3)),
            SavedArray(
                "optimizer",
                "w",
                "m",
                "bfloat16",
                (10,),
                (Piece(0, 4, 0, 200), Piece(4, 10, 1, 200)),
            ),
        ),
    )


def test_what_is_written_comes_back():
    assert parsing.from_bytes(manifest.to_bytes(example())) == example()


def edited(change, sign=True):
    content = json.loads(manifest.to_bytes(example()))
    change(content)
    if sign:
        del content["sha256"]
        content = {"sha256": manifest.digest(content), **content}
    return json.dumps(content).encode()


def put(*places):
    """Puts the last of the places under the others."""
    *path, last, value = places

    def change(content):
        for place in path:
            content = content[place]
        content[last] = value

    return change


FIRST, CUT = ("arrays", 0), ("arrays", 2)
NAME = ("files", 0, "name")
HOSTILE = {
    "edited": (put("step", 8), "edited or damaged"),
    "version": (put("version", 2), "version 2, and this mlxdist reads version 1"),
    "format": (put("format", "other"), "its format is not"),
    "a key more": (put("more", 1), "its keys are"),
    "slash": (put(*NAME, "a/b.safetensors"), "not the name of a file in its folder"),
    "dots": (put(*NAME, "../x.safetensors"), "not the name of a file"),
    "dots alone": (put(*NAME, ".."), "not the name of a file"),
    "hidden": (put(*NAME, ".x.safetensors"), "not the name of a file"),
    "absolute": (put(*NAME, "/etc/x.safetensors"), "not the name of a file"),
    "backslash": (put(*NAME, "a\\b.safetensors"), "not the name of a file"),
    "nul": (put(*NAME, "a\0.safetensors"), "not the name of a file"),
    "newline": (put(*NAME, "a.safetensors\n"), "not the name of a file"),
    "no text": (put(*NAME, 5), "wanted text"),
    "twice": (put(*NAME, "rank-00001.safetensors"), "stands twice"),
    "short": (put("files", 1, "nbytes", BLOCK), "has 2 sha256, wanted 1"),
    "negative": (put("files", 0, "nbytes", -1), "wanted a count"),
    "huge": (put("files", 0, "nbytes", 2**60), "wanted a count"),
    "float": (put("step", 7.0), "wanted a count"),
    "bool": (put("step", True), "wanted a count"),
    "sha": (put("files", 0, "sha256", ["ab"]), "a sha256 is none"),
    "block": (put("block", 1), "blocks of 1 bytes"),
    "dtype": (put(*FIRST, "dtype", "object"), "unknown dtype 'object'"),
    "kind": (put(*FIRST, "kind", "../x"), "no kind of array"),
    "gap": (put(*CUT, "pieces", 1, 0, 5), "miss elements 4 to 5"),
    "overlap": (put(*CUT, "pieces", 1, 0, 3), "overlap in elements 3 to 4"),
    "end": (put(*CUT, "shape", [11]), "end at 10 of 11"),
    "missing": (put(*CUT, "pieces", []), "end at 0 of 10"),
    "beyond": (put(*FIRST, "pieces", 0, 3, 990), "ends at byte 1014"),
    "no file": (put(*FIRST, "pieces", 0, 2, 9), "in file 9, which is not listed"),
    "on another": (put(*FIRST, "pieces", 0, 3, 190), "overlap in rank-00000"),
    "array twice": (put(*CUT, "key", None), "wanted text"),
    "random": (put("random", [[0, 1]]), "not one key of mx.random for each rank"),
    "world": (put("world_size", 0), "no rank"),
    "shape": (put(*FIRST, "shape", [-2, -3]), "wanted a count"),
    "too large": (put(*FIRST, "shape", [2**50, 2**50]), "too large"),
    "sampler": (put("sampler", [1]), "the sampler is no object"),
    "not a list": (put("files", None), "it is not complete"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_manifests_are_refused(kind):
    change, told = HOSTILE[kind]
    with pytest.raises(ValueError, match=told.replace("..", r"\.\.")):
        parsing.from_bytes(edited(change, sign=kind != "edited"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"a": NaN}',
        b"\xff\xfe",
        b'{"a": 1}',
        b"1" * 9999,
    ],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ValueError, match=r"it is not|its format"):
        parsing.from_bytes(data)


def paths(value, path=()):
    """Every place in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)
    for key, child in items:
        yield from paths(child, (*path, key))


@given(st.data())
def test_no_signed_edit_makes_trouble(data):
    """Whatever stands anywhere: a manifest that holds, or a ValueError."""
    content = json.loads(manifest.to_bytes(example()))
    place = data.draw(st.sampled_from([p for p in paths(content) if p != ("sha256",)]))
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**60),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=9),
        st.lists(st.integers(-1, 9), max_size=4),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
    change = put(*place, data.draw(junk))
    try:
        found = parsing.from_bytes(edited(change))
    except ValueError:
        return
    assert isinstance(found, Manifest)
    for array in found.arrays:
        assert sum(piece.stop - piece.start for piece in array.pieces) == array.size


# -- who writes what

DTYPES = ("float32", "bfloat16", "uint32")
entries = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=3), st.sampled_from(DTYPES[:2])),
    min_size=1,
    max_size=8,
).map(
    lambda drawn: [
        Entry(f"p.{index}", tuple(shape), dtype)
        for index, (shape, dtype) in enumerate(drawn)
    ]
)


def held_by(plan, rank):
    """What a rank says that it holds: two moments, and a number for each tensor."""
    tree = {}
    for path, (start, stop) in plan.shard(rank).items():
        entry = plan.by_path[path]
        shape = (stop - start,) if plan.strategy == "elements" else entry.shape
        tree[path] = {"m": [entry.dtype, *shape], "count": ["float32"]}
    return {"optimizer": tree}


@given(
    entries,
    st.integers(1, 6),
    st.sampled_from(["elements", "tensors"]),
    st.integers(1, 300),
)
def test_every_element_is_written_once(listed, ranks, strategy, bucket_size):
    plan = make_plan(listed, ranks, strategy=strategy, bucket_size=bucket_size)
    held = [held_by(plan, rank) for rank in range(ranks)]
    shares = contents.sharded(held, plan)
    every = [SavedArray("parameters", e.path, "", e.dtype, e.shape) for e in listed]
    contents.spread(shares, every)
    empty = [array for array in every if not array.size]
    layout = contents.lay_out(shares, empty, "a test")
    files = []
    for rank, (parts, head) in enumerate(
        zip(layout.parts, layout.headers, strict=True)
    ):
        nbytes = len(head) + sum(part.nbytes for part in parts)
        files.append(SavedFile(f"r{rank}.safetensors", nbytes, (SHA,)))
        assert len(head) % 8 == 0
    made = Manifest(
        **{
            **vars(example()),
            "world_size": ranks,
            "random": ((0, 0),) * ranks,
            "disks": (0,) * ranks,
            "files": tuple(files),
            "arrays": layout.arrays,
        }
    )
    found = parsing.from_bytes(manifest.to_bytes(made))  # covers, and nothing overlaps
    names = {array.identity for array in found.arrays}
    assert names >= {array.identity for array in every}
    with_elements = {entry.path for entry in listed if entry.size}
    for path, key in itertools.product(with_elements, ("m", "count")):
        saved = found.by_identity["optimizer", path, key]
        assert saved.shape == (plan.by_path[path].shape if key == "m" else ())


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    st.lists(st.integers(1, 400), max_size=9),
)
def test_files_even_out(held, sizes):
    shares = []
    for rank, count in enumerate(held):
        own = SavedArray("optimizer", str(rank), "m", "float32", (count,))
        shares.append([Part(own, 0, count)] if count else [])
    every = [
        SavedArray("parameters", str(index), "", "float32", (size,))
        for index, size in enumerate(sizes)
    ]
    contents.spread(shares, every)
    written = [sum(part.nbytes for part in share) for share in shares]
    total = 4 * (sum(held) + sum(sizes))
    assert sum(written) == total
    least = max(4 * max(held), -(-total // len(held)))
    assert max(written) <= least + 4 * len(held)


def test_two_arrays_of_one_name_are_refused():
    one = SavedArray("extra", "a/b", "", "float32", (2,))
    other = SavedArray("extra", "a", "b", "float32", (2,))
    shares = [[Part(one, 0, 2), Part(other, 0, 2)]]
    with pytest.raises(ValueError, match="'extra/a/b'"):
        contents.lay_out(shares, [], "a test")


def test_an_example_is_not_changed_by_its_edits():
    """The other tests prove nothing if this fails."""
    before = copy.deepcopy(example())
    edited(put("step", 9))
    assert example() == before
    assert parsing.from_bytes(edited(lambda content: None)) == before
