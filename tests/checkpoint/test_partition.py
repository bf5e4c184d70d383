"""Which rank writes which elements, and where in its file."""

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.checkpoint import manifest, manifest_check, partition
from mlxdist.checkpoint.manifest import SavedArray, SavedFile
from mlxdist.checkpoint.partition import LocalPart, Part
from mlxdist.layout.sharding import make_plan
from tests.support.checkpoints import SHA256, example_manifest
from tests.support.plans import make_entry

entries = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from(["float32", "bfloat16"]),
    ),
    min_size=1,
    max_size=8,
).map(
    lambda drawn: [
        make_entry(f"p.{index}", tuple(shape), dtype)
        for index, (shape, dtype) in enumerate(drawn)
    ]
)


def local_parts(plan, rank):
    """Return a rank's parts of a moment, and of a number for each tensor."""
    parts = []
    for path, (start, stop) in plan.shard(rank).items():
        entry = plan.by_path[path]
        name = str(path)
        parts.append(LocalPart(name, "m", entry.dtype, entry.shape, start, stop))
        parts.append(LocalPart(name, "count", "float32", (), 0, 1))
    return parts


@given(
    entries,
    st.integers(1, 6),
    st.sampled_from(["elements", "tensors"]),
    st.integers(1, 300),
)
def test_lay_out_writes_every_element_once(listed, ranks, strategy, bucket_size):
    plan = make_plan(listed, ranks, strategy=strategy, bucket_size=bucket_size)
    reports = [local_parts(plan, rank) for rank in range(ranks)]
    shares = partition.assign_sharded(reports, list(map(str, plan.by_path)))
    weights = [
        SavedArray("parameters", str(e.path), "", e.dtype, e.shape) for e in listed
    ]
    partition.spread(shares, weights)
    empty = [array for array in weights if not array.size]
    layout = partition.lay_out(shares, empty, "a test")
    files = []
    for rank, (parts, head) in enumerate(
        zip(layout.parts, layout.headers, strict=True)
    ):
        nbytes = len(head) + sum(part.nbytes for part in parts)
        files.append(SavedFile(f"r{rank}.safetensors", nbytes, (SHA256,)))
        assert len(head) % 8 == 0
    written = msgspec.structs.replace(
        example_manifest(),
        world_size=ranks,
        random=((0, 0),) * ranks,
        disks=(0,) * ranks,
        files=tuple(files),
        arrays=layout.arrays,
    )
    # Checks that pieces cover their arrays, and don't overlap.
    read = manifest_check.from_bytes(manifest.to_bytes(written))
    saved_arrays = {array.identity: array for array in read.arrays}
    assert saved_arrays.keys() >= {array.identity for array in weights}
    for array in read.arrays:  # a view of the file has to be aligned
        assert all(piece.offset % array.item_size == 0 for piece in array.pieces)
    with_elements = {entry.path for entry in listed if entry.size}
    for path, key in itertools.product(with_elements, ("m", "count")):
        saved = saved_arrays["optimizer", str(path), key]
        assert saved.shape == (plan.by_path[path].shape if key == "m" else ())


def test_assign_sharded_prefers_a_whole_array_to_slices():
    """A state of one number looks like a slice on a rank with one element."""
    reports = [
        [LocalPart("w", "count", "float32", (3,), 0, 1)],
        [LocalPart("w", "count", "float32", (1,), 0, 1)],
    ]
    first, second = partition.assign_sharded(reports, ["w"])
    assert first == []
    assert second == [
        Part(SavedArray("optimizer", "w", "count", "float32", (1,)), 0, 1)
    ]


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    st.lists(st.integers(1, 400), max_size=9),
)
def test_spread_evens_out_the_files(sharded_sizes, sizes):
    shares = []
    for rank, count in enumerate(sharded_sizes):
        moment = SavedArray("optimizer", str(rank), "m", "float32", (count,))
        shares.append([Part(moment, 0, count)] if count else [])
    weights = [
        SavedArray("parameters", str(index), "", "float32", (size,))
        for index, size in enumerate(sizes)
    ]
    partition.spread(shares, weights)
    written = [sum(part.nbytes for part in share) for share in shares]
    total = 4 * (sum(sharded_sizes) + sum(sizes))
    assert sum(written) == total
    ranks = len(sharded_sizes)
    least = max(4 * max(sharded_sizes), -(-total // ranks))
    assert max(written) <= least + 4 * ranks


def test_lay_out_gives_two_arrays_of_the_same_name_different_names():
    first = SavedArray("extra", "a/b", "", "float32", (2,))
    second = SavedArray("extra", "a", "b", "float32", (2,))
    shares = [[Part(first, 0, 2), Part(second, 0, 2)]]
    layout = partition.lay_out(shares, [], "a test")
    assert b'"extra/a/b"' in layout.headers[0]
    assert b'"extra/a/b (2)"' in layout.headers[0]
    identities = [array.identity for array in layout.arrays]
    assert identities == [first.identity, second.identity]
