"""Rank 0's weights on all ranks: only those that differ are sent.

The frozen base of an adapted model is the same file on every rank, as a rule, and far
larger than what is trained. Ranks compare the beginning of each array first, which
distinguishes unseeded models at once, and then the sha256 of those that begin alike.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
from mlx.nn import Module
from numpy.typing import NDArray

from ..arrays.numpy_view import raw
from ..arrays.trees import all_parameters, rebuild
from ..arrays.types import Flat
from ..comm.agreement import agree, error_text
from ..comm.collectives import Collectives
from ..layout.entries import fingerprint, split_counts
from ..layout.paths import KeyPath

# Bytes of each array that are compared first.
BEGINNING = 4096
_PIECE_BYTES = 16 * 2**20  # that one thread hashes
_THREADS = 4


def share_module(comm: Collectives, call: str, module: Module) -> None:
    """Replace a module's parameters, the frozen ones too, by rank 0's.

    Sends 8 bytes for each array and 16 for those that begin alike, and the arrays that
    differ on any rank. Hashes about 1 GB a second on each of up to four threads.

    Raises:
        MismatchError: on all ranks, where paths, shapes or dtypes differ, or the values
            can't be computed on one of them.
    """
    parameters: Flat = {}
    lines: list[str] = []
    problem = None
    try:
        parameters = all_parameters(module)
        lines = [f"{p} {a.dtype}{list(a.shape)}" for p, a in parameters.items()]
        if comm.size > 1:
            mx.eval(list(parameters.values()))
    except Exception as error:
        problem = error_text(error)
    agree(comm, call, fingerprint(lines), lambda: lines, problem=problem)
    if comm.size == 1:
        return
    differing = differing_paths(comm, parameters)
    if not differing:
        return
    sent = {path: comm.broadcast(parameters[path], 0) for path in differing}
    module.update(rebuild(module.parameters(), {**parameters, **sent}))


def differing_paths(comm: Collectives, parameters: Flat) -> list[KeyPath]:
    """Return the paths of the arrays whose bits are not the same on all ranks."""
    paths = list(parameters)
    beginnings = [raw(parameters[path])[:BEGINNING] for path in paths]
    alike = _equal(comm, beginnings, words=1)
    same = [path for path, equal in zip(paths, alike, strict=True) if equal]
    equal = _equal(comm, [raw(parameters[path]) for path in same], words=2)
    equal_paths = {path for path, is_equal in zip(same, equal, strict=True) if is_equal}
    return [path for path in paths if path not in equal_paths]


def _equal(
    comm: Collectives, data: Sequence[NDArray[np.uint8]], words: int
) -> list[bool]:
    """Return for each vector of bytes whether all ranks have the same."""
    if not data:
        return []
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        digests = [threads.map(_digest, _pieces(vector)) for vector in data]
        whole = [_digest(b"".join(pieces))[: 8 * words] for pieces in digests]
    local = np.frombuffer(b"".join(whole), np.uint64)
    every = comm.all_gather_words(local).reshape(comm.size, -1, words)
    return [bool(equal) for equal in (every == every[0]).all(axis=(0, 2))]


def _pieces(data: NDArray[np.uint8]) -> list[memoryview]:
    return [data[i:j].data for i, j in split_counts(data.size, _PIECE_BYTES)]


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()
