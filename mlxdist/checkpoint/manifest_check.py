"""Parsing of a manifest that may be damaged or hostile: nothing in it is trusted.

`manifest.py` declares types, bounds and patterns, which msgspec enforces. Here is what
they can't express: pieces cover their array exactly once, and lie inside their files
without overlap.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from .manifest import FORMAT, VERSION, Json, Manifest, SavedArray, SavedFile, digest

MAX_BYTES = 256 * 2**20  # a manifest of 2**20 pieces has about a fifth

_MAX_ARRAY_BYTES = 2**53


def from_bytes(data: bytes) -> Manifest:
    """Parse a manifest and check all of it.

    Raises:
        ValueError: with what is wrong.
    """
    _require(len(data) <= MAX_BYTES, f"it has {len(data)} bytes, more than {MAX_BYTES}")
    content = _signed_content(data)
    try:
        manifest = msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        raise ValueError(f"a value in it is not valid: {error}") from None
    _check(manifest)
    return manifest


def _signed_content(data: bytes) -> dict[str, Json]:
    """Return the manifest's fields, after a check of format, version and sha256."""
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    _require(isinstance(content, dict), "it is not a JSON object")
    _require(content.get("format") == FORMAT, f'its format is not "{FORMAT}"')
    version = content.get("version")
    _require(
        version == VERSION,
        f"it has version {version!r}, and this mlxdist reads version {VERSION}",
    )
    sha256 = content.pop("sha256", None)
    _require(sha256 == digest(content), "it was edited or damaged: its sha256 differs")
    return {k: v for k, v in content.items() if k not in ("format", "version")}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _check(manifest: Manifest) -> None:
    ranks = manifest.world_size
    _require(len(manifest.random) == ranks, "not one key of mx.random for each rank")
    _require(len(manifest.disks) == len(manifest.files), "not one disk for each file")
    _require_unique((file.name for file in manifest.files), "file")
    _require_unique((json.dumps(a.identity) for a in manifest.arrays), "array")
    for file in manifest.files:
        blocks = -(-file.nbytes // manifest.block)
        _require(
            len(file.sha256) == blocks,
            f"{file.name} of {file.nbytes} bytes has {len(file.sha256)} sha256, wanted "
            f"{blocks}",
        )
    for array in manifest.arrays:
        _check_cover(array)
    _check_inside(manifest.arrays, manifest.files)


def _require_unique(names: Iterable[str], what: str) -> None:
    seen = set()
    for name in names:
        _require(name not in seen, f"the {what} {name} is listed twice")
        seen.add(name)


def _check_cover(array: SavedArray) -> None:
    _require(array.nbytes < _MAX_ARRAY_BYTES, f"{array} is too large")
    end = 0
    for piece in array.pieces:
        what = "miss" if piece.start > end else "overlap in"
        _require(
            piece.start == end,
            f"the pieces of {array} {what} elements {min(end, piece.start)} to "
            f"{max(end, piece.start)}",
        )
        _require(piece.stop > piece.start, f"{array} has an empty piece")
        end = piece.stop
    _require(end == array.size, f"the pieces of {array} end at {end} of {array.size}")


def _check_inside(arrays: Sequence[SavedArray], files: Sequence[SavedFile]) -> None:
    used: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for array in arrays:
        for start, stop, file, offset in array.pieces:
            listed = file < len(files)
            _require(listed, f"{array} is in file {file}, which is not listed")
            end = offset + (stop - start) * array.item_size
            _require(
                end <= files[file].nbytes,
                f"{array} ends at byte {end} of {files[file].name}, which has "
                f"{files[file].nbytes}",
            )
            used[file].append((offset, end, array.name))
    for file, ranges in used.items():
        for (_, end, name), (start, _, other) in pairwise(sorted(ranges)):
            _require(end <= start, f"{name} and {other} overlap in {files[file].name}")
