"""State that moves between ranks, an array at a time, and of it only what moves.

The ranks first exchange what they have: names, shapes and numbers. From that, each rank
derives the same list of moves, and a rank keeps what arrives for itself alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..arrays.dtypes import dtype_name, dtype_of
from ..arrays.types import Array, Dtype
from ..comm.agreement import MismatchError
from ..comm.collectives import Collectives
from ..layout.entries import ITEM_SIZES, Entry, split_counts
from ..layout.moves import Span, find_moves
from ..layout.paths import KeyPath
from .state import StateTree
from .state_layout import Parts, StateArray
from .state_values import Value, is_number

# Bytes that are sent at once. A rank holds so much of what is not for itself.
PIECE_BYTES = 16 * 2**20


class Header(NamedTuple):
    """One rank's part of an array of state, without its elements.

    Attributes:
        dtype: its name; "" for a number that is no array.
        shape: of the whole array.
        value: the number.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    value: Value

    @property
    def span(self) -> Span:
        return self.start, self.stop

    @property
    def is_whole(self) -> bool:
        return self.span == (0, math.prod(self.shape))


Headers = dict[KeyPath, dict[str, Header]]  # {path: {key: header}}
JsonByKey = Mapping[str, Any]
Name = TypeVar("Name")


class Want(NamedTuple):
    """Elements [start, stop) of a whole array that a rank is to have, in a shape."""

    start: int
    stop: int
    shape: tuple[int, ...]


Wants = Callable[[int, KeyPath, str, Header], Want | None]


def headers_of(parts: Parts) -> Headers:
    """Return the headers of a rank's state."""
    return {
        path: {key: _header(part) for key, part in keys.items()}
        for path, keys in parts.items()
    }


def _header(part: StateArray) -> Header:
    if is_number(part.array):
        return Header("", (), 0, 1, part.array)
    dtype = dtype_name(part.array.dtype)
    return Header(dtype, part.shape, part.start, part.stop, None)


def exchange_headers(
    comm: Collectives, headers: Headers, entries: Sequence[Entry]
) -> list[Headers]:
    """Return every rank's headers of the entries' state, by rank."""
    return [
        {
            path: {key: _header_from_json(*fields) for key, fields in keys.items()}
            for path, keys in tree.items()
        }
        for tree in all_gather_by_path(comm, headers, entries)
    ]


def all_gather_by_path(
    comm: Collectives, tree: Mapping[KeyPath, JsonByKey], entries: Sequence[Entry]
) -> list[dict[KeyPath, JsonByKey]]:
    """Return what each rank has for each entry's path, as JSON can write it."""
    local = {
        str(index): tree[entry.path]
        for index, entry in enumerate(entries)
        if entry.path in tree
    }
    every = comm.all_gather_bytes(json.dumps(local).encode())
    return [
        {entries[int(index)].path: keys for index, keys in json.loads(text).items()}
        for text in every
    ]


def _header_from_json(
    dtype: str, shape: list[int], start: int, stop: int, value: Value
) -> Header:
    assert not dtype or dtype in ITEM_SIZES, dtype
    return Header(dtype, tuple(shape), start, stop, value)


def number_problem(every: Sequence[Headers]) -> str | None:
    """Return which number of the state differs between ranks, or None."""
    first: dict[tuple[KeyPath, str], Value] = {}
    for rank, headers in enumerate(every):
        for path, keys in headers.items():
            for key, header in keys.items():
                if header.dtype:
                    continue
                value = first.setdefault((path, key), header.value)
                if repr(value) != repr(header.value):
                    return (
                        f"the state {key} of {path} is {header.value!r} on rank "
                        f"{rank}, and {value!r} on an earlier one"
                    )
    return None


def exchange(
    comm: Collectives, parts: Parts, every: Sequence[Headers], wants: Wants
) -> StateTree:
    """Return the elements that this rank wants. Called by all ranks.

    Args:
        parts: this rank's state; emptied, so that memory is free as soon as it can be.
        every: all ranks' headers.
        wants: `(rank, path, key, header) -> want`, or None for nothing. The same on all
            ranks.
    """
    result: StateTree = {}
    for path in _ordered_union(every):
        local = parts.pop(path, {})
        by_rank = [headers.get(path, {}) for headers in every]
        for key in _ordered_union(by_rank):
            have = _same_shape(
                {rank: keys[key] for rank, keys in enumerate(by_rank) if key in keys}
            )
            first = next(iter(have.values()))
            by_rank_or_none = {
                rank: wants(rank, path, key, first) for rank in range(comm.size)
            }
            wanted = {r: w for r, w in by_rank_or_none.items() if w is not None}
            part = local.pop(key, None) if comm.rank in have else None
            value = _exchange_one(comm, part, have, wanted)
            if comm.rank in wanted:
                result.setdefault(path, {})[key] = value
    return result


def exchange_shards(
    comm: Collectives,
    parts: Parts,
    entries: Sequence[Entry],
    wants_of: Callable[[Sequence[Headers]], Wants],
) -> StateTree:
    """Exchange headers, and then the elements that each rank wants.

    Raises:
        MismatchError: on all ranks, where a number of the state differs between them.
    """
    every = exchange_headers(comm, headers_of(parts), entries)
    problem = number_problem(every)
    if problem is not None:
        raise MismatchError(f"{problem}: all ranks must have the same")
    return exchange(comm, parts, every, wants_of(every))


def whole(rank: int, path: KeyPath, key: str, header: Header) -> Want:
    """Return that a rank is to have a whole array."""
    return Want(0, math.prod(header.shape), header.shape)


def _same_shape(have: dict[int, Header]) -> dict[int, Header]:
    """Return the headers with one shape, of those that differ in it.

    An optimizer may make an array of shape (1,) at its first step. A rank whose slice
    has one element takes it for a slice; the others know that it is whole.
    """
    headers = have.values()
    first = next((h for h in headers if h.is_whole), next(iter(headers)))
    return {rank: h for rank, h in have.items() if h.shape == first.shape}


def _ordered_union(mappings: Sequence[Mapping[Name, object]]) -> list[Name]:
    return list(dict.fromkeys(name for names in mappings for name in names))


def _exchange_one(
    comm: Collectives,
    part: StateArray | None,
    have: dict[int, Header],
    wanted: dict[int, Want],
) -> Value:
    """Return the value that this rank wants, or None."""
    header = next(iter(have.values()))
    if not header.dtype:
        return header.value
    local: list[tuple[Span, Array]] = []
    if part is not None:
        local.append(((part.start, part.stop), part.array.reshape(-1)))
    start, stop, shape = wanted.get(comm.rank, Want(0, 0, ()))
    moves = find_moves(
        {rank: other.span for rank, other in have.items()},
        {rank: (want.start, want.stop) for rank, want in wanted.items()},
    )
    dtype = dtype_of(header.dtype)
    for root, first, last in moves:
        for low, high in split_counts(last - first, PIECE_BYTES // dtype.size):
            span = first + low, first + high
            array = _broadcast(comm, root, span, local, dtype)
            if max(span[0], start) < min(span[1], stop) and comm.rank != root:
                local.append((span, array))
    if comm.rank not in wanted:
        return None
    return _joined(local, (start, stop), dtype).reshape(shape)


def _broadcast(
    comm: Collectives,
    root: int,
    span: Span,
    local: list[tuple[Span, Array]],
    dtype: Dtype,
) -> Array:
    """Send some elements to all ranks; the root has them in the first of `local`."""
    if comm.rank == root:
        (start, _), flat = local[0]
        return comm.broadcast(flat[span[0] - start : span[1] - start], root)
    return comm.broadcast(mx.zeros(span[1] - span[0], dtype), root)


def _joined(local: list[tuple[Span, Array]], wanted: Span, dtype: Dtype) -> Array:
    """Return a range of elements as one vector, from parts that cover it."""
    if local and local[0][0] == wanted:
        return local[0][1]
    parts: list[Array] = []
    position, stop = wanted
    for (first, last), array in sorted(local, key=lambda item: item[0]):
        low, high = max(first, position), min(last, stop)
        if low < high:
            parts.append(array[low - first : high - first])
            position = high
    joined = mx.concatenate(parts) if parts else mx.zeros(0, dtype)
    mx.eval(joined)
    return joined
