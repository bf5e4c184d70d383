"""Reads a manifest and believes nothing of it that it has not checked.

Names of files are plain names; pieces cover their array once, and lie inside of their
file without touching one another.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from ..layout.entries import ITEM_SIZES
from .manifest import (
    FORMAT,
    VERSION,
    Leaf,
    Manifest,
    Piece,
    SavedArray,
    SavedFile,
    digest,
)

LARGEST = 256 * 2**20  # bytes of a manifest; one of 2**20 pieces has about a fifth

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_KIND = re.compile(r"[a-z][a-z_]{0,49}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCKS = range(2**12, 2**30 + 1)
_TOO_LARGE = 2**53


def from_bytes(data: bytes) -> Manifest:
    """Reads a manifest and checks all that it says.

    Raises:
        ValueError: with what is wrong.
    """
    _need(len(data) <= LARGEST, f"it has {len(data)} bytes, more than {LARGEST}")
    try:
        content = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    _need(isinstance(content, dict), "it is not a JSON object")
    _need(content.get("format") == FORMAT, f'its format is not "{FORMAT}"')
    version = content.get("version")
    _need(
        version == VERSION,
        f"it has version {version!r}, and this mlxdist reads version {VERSION}",
    )
    stated = content.pop("sha256", None)
    _need(stated == digest(content), "it was edited or damaged: its sha256 is another")
    del content["format"], content["version"]
    try:
        manifest = _build(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not complete: {error!r}") from None
    _check(manifest)
    return manifest


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _need(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _build(content: dict[str, Any]) -> Manifest:
    known = {field.name for field in fields(Manifest)}
    _need(content.keys() == known, f"its keys are {sorted(content)}")
    parts: dict[str, Any] = {
        "optimizer": tuple(_leaf(one) for one in content["optimizer"]),
        "random": tuple((_count(hi), _count(lo)) for hi, lo in content["random"]),
        "disks": tuple(map(_count, content["disks"])),
        "files": tuple(_file(one) for one in content["files"]),
        "arrays": tuple(_array(one) for one in content["arrays"]),
        "counters": {_text(k): _count(v) for k, v in content["counters"].items()},
        "versions": {_text(k): _text(v) for k, v in content["versions"].items()},
    }
    for name in ("step", "world_size", "block"):
        parts[name] = _count(content[name])
    for name in ("saved_at", "strategy", "layout"):
        parts[name] = _text(content[name])
    return Manifest(**{**content, **parts})


def _count(value: Any) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _need(whole and 0 <= value < _TOO_LARGE, f"found {value!r}, wanted a count")
    return int(value)


def _text(value: Any) -> str:
    _need(isinstance(value, str), f"found {value!r}, wanted text")
    return str(value)


def _leaf(one: dict[str, Any]) -> Leaf:
    settings, paths = (tuple(map(_text, one[name])) for name in ("settings", "paths"))
    return Leaf(_text(one["at"]), _text(one["name"]), settings, paths)


def _file(one: dict[str, Any]) -> SavedFile:
    digests = tuple(map(_text, one["sha256"]))
    _need(all(map(_SHA256.fullmatch, digests)), "a sha256 is none")
    name = _text(one["name"])
    _need(
        _FILE_NAME.fullmatch(name) is not None,
        f"{name!r} is not the name of a file in its folder",
    )
    return SavedFile(name, _count(one["nbytes"]), digests)


def _array(one: dict[str, Any]) -> SavedArray:
    dtype = _text(one["dtype"])
    _need(dtype in ITEM_SIZES, f"unknown dtype {dtype!r}")
    kind = _text(one["kind"])
    _need(_KIND.fullmatch(kind) is not None, f"{kind!r} is no kind of array")
    return SavedArray(
        kind=kind,
        path=_text(one["path"]),
        key=_text(one["key"]),
        dtype=dtype,
        shape=tuple(map(_count, one["shape"])),
        pieces=tuple(Piece(*map(_count, piece)) for piece in one["pieces"]),
    )


def _check(manifest: Manifest) -> None:
    size = manifest.world_size
    _need(size >= 1, "its world has no rank")
    _need(manifest.block in _BLOCKS, f"blocks of {manifest.block} bytes")
    _need(len(manifest.random) == size, "not one key of mx.random for each rank")
    _need(len(manifest.disks) == len(manifest.files), "not one disk for each file")
    sampler = manifest.sampler
    _need(sampler is None or isinstance(sampler, dict), "the sampler is no object")
    _once((file.name for file in manifest.files), "file")
    _once(("/".join(array.identity) for array in manifest.arrays), "array")
    for file in manifest.files:
        blocks = -(-file.nbytes // manifest.block)
        _need(
            len(file.sha256) == blocks,
            f"{file.name} of {file.nbytes} bytes has {len(file.sha256)} sha256, wanted "
            f"{blocks}",
        )
    for array in manifest.arrays:
        _check_cover(array)
    _check_inside(manifest.arrays, manifest.files)


def _once(names: Iterable[str], what: str) -> None:
    seen = set()
    for name in names:
        _need(name not in seen, f"the {what} {name!r} stands twice")
        seen.add(name)


def _check_cover(array: SavedArray) -> None:
    _need(array.nbytes < _TOO_LARGE, f"{array} is too large")
    end = 0
    for piece in array.pieces:
        what = "miss" if piece.start > end else "overlap in"
        _need(
            piece.start == end,
            f"the pieces of {array} {what} elements {min(end, piece.start)} to "
            f"{max(end, piece.start)}",
        )
        _need(piece.stop > piece.start, f"{array} has an empty piece")
        end = piece.stop
    _need(end == array.size, f"the pieces of {array} end at {end} of {array.size}")


def _check_inside(arrays: Sequence[SavedArray], files: Sequence[SavedFile]) -> None:
    used: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for array in arrays:
        for start, stop, file, offset in array.pieces:
            _need(file < len(files), f"{array} is in file {file}, which is not listed")
            end = offset + (stop - start) * array.item_size
            _need(
                end <= files[file].nbytes,
                f"{array} ends at byte {end} of {files[file].name}, which has "
                f"{files[file].nbytes}",
            )
            used[file].append((offset, end, array.name))
    for file, spans in used.items():
        for one, other in pairwise(sorted(spans)):
            _need(
                one[1] <= other[0],
                f"{one[2]} and {other[2]} overlap in {files[file].name}",
            )
