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

from . import bounded_json
from .manifest import (
    FORMAT,
    VERSION,
    Identity,
    Json,
    Manifest,
    SavedArray,
    SavedFile,
    digest,
)

_MAX_ARRAY_BYTES = 2**53


def from_bytes(data: bytes) -> Manifest:
    """Parse a manifest and check all of it.

    Raises:
        ValueError: with what is wrong.
    """
    try:
        manifest = msgspec.convert(_signed_content(data), Manifest)
    except msgspec.ValidationError as error:
        raise ValueError(f"a value in it is not valid: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(manifest)
    return manifest


def _signed_content(data: bytes) -> dict[str, Json]:
    """Return the manifest's fields, after a check of format, version and sha256."""
    content = bounded_json.parse(data)
    _require(isinstance(content, dict), "it is not a JSON object")
    _require(content.get("format") == FORMAT, f'its format is not "{FORMAT}"')
    version = content.get("version")
    _require(
        version == VERSION,
        f"it has version {version!r:.50}, and this mlxdist reads version {VERSION}",
    )
    sha256 = content.pop("sha256", None)
    _require(sha256 == digest(content), "it was edited or damaged: its sha256 differs")
    return {k: v for k, v in content.items() if k not in ("format", "version")}


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _check(manifest: Manifest) -> None:
    ranks = manifest.world_size
    _require(len(manifest.random) == ranks, "not one key of mx.random for each rank")
    _require(len(manifest.files) <= ranks, "more files than ranks")
    _require(len(manifest.disks) == len(manifest.files), "not one disk for each file")
    _require_unique((file.name for file in manifest.files), "file")
    _require_unique((array.identity for array in manifest.arrays), "array")
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


def _require_unique(names: Iterable[str | Identity], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {what} {json.dumps(name)} is listed twice")
        seen.add(name)


# Texts of errors are made where there is an error: an array's takes microseconds.


def _check_cover(array: SavedArray) -> None:
    if array.nbytes >= _MAX_ARRAY_BYTES:
        raise ValueError(f"{array} is too large")
    end = 0
    for piece in array.pieces:
        if piece.start != end:
            what = "miss" if piece.start > end else "overlap in"
            raise ValueError(
                f"the pieces of {array} {what} elements {min(end, piece.start)} to "
                f"{max(end, piece.start)}"
            )
        if piece.stop <= piece.start:
            raise ValueError(f"{array} has an empty piece")
        end = piece.stop
    if end != array.size:
        raise ValueError(f"the pieces of {array} end at {end} of {array.size}")


def _check_inside(arrays: Sequence[SavedArray], files: Sequence[SavedFile]) -> None:
    used: dict[int, list[tuple[int, int, SavedArray]]] = defaultdict(list)
    for array in arrays:
        for start, stop, file, offset in array.pieces:
            if file >= len(files):
                raise ValueError(f"{array} is in file {file}, which is not listed")
            end = offset + (stop - start) * array.item_size
            if end > files[file].nbytes:
                raise ValueError(
                    f"{array} ends at byte {end} of {files[file].name}, which has "
                    f"{files[file].nbytes}"
                )
            used[file].append((offset, end, array))
    for file, ranges in used.items():
        ranges.sort(key=lambda item: item[:2])
        for (_, end, array), (start, _, other) in pairwise(ranges):
            if end > start:
                name = files[file].name
                raise ValueError(f"{array.name} and {other.name} overlap in {name}")
