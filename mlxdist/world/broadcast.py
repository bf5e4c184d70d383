"""The root's arrays, on every rank."""

from __future__ import annotations

import json
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx.nn import Module

from ..arrays.dtypes import dtype_of
from ..arrays.trees import entries_of, leaves_of, rebuild
from ..arrays.types import Tree
from ..comm.agreement import agree, result_or_problem
from ..comm.collectives import Collectives
from ..layout.entries import Entry, fingerprint


def broadcast_tree(comm: Collectives, tree: Tree, root: int) -> Tree:
    """Return the root's arrays in the structure of `tree`.

    The parameters of a module have the same shapes and dtypes on all ranks. Arrays of
    another tree get those of the root: its bytes are all that is sent.

    Raises:
        MismatchError: on all ranks, where paths, the shapes of a module's parameters,
            or `root` differ or are wrong, or the root can't evaluate its arrays.
    """
    is_module = isinstance(tree, Module)
    arrays = tree.parameters() if is_module else tree
    entries, problem = result_or_problem(entries_of, arrays)
    if problem is None and comm.rank == root:  # an error now is one of all ranks
        _, problem = result_or_problem(mx.eval, arrays)
    if not (isinstance(root, int | np.integer) and 0 <= root < comm.size):
        problem = f"root is {root!r}; the ranks go from 0 to {comm.size - 1}"
    texts = [str(e) if is_module else f"{e.path}" for e in entries or ()]
    lines = [f"root {root}", *texts]
    call = "World.broadcast"
    agree(comm, call, fingerprint(lines), lambda: lines, problem=problem)
    assert entries is not None
    if not is_module:
        entries = _entries_of_root(comm, entries, root)
    flat = leaves_of(arrays)
    sent = {
        e.path: comm.broadcast(
            flat[e.path] if comm.rank == root else mx.zeros(e.shape, dtype_of(e.dtype)),
            root,
        )
        for e in entries
    }
    return rebuild(arrays, sent)


def _entries_of_root(
    comm: Collectives, entries: Sequence[Entry], root: int
) -> tuple[Entry, ...]:
    """Return the entries with the shapes and dtypes that the root has."""
    local = [(entry.shape, entry.dtype) for entry in entries]
    text = json.dumps(local if comm.rank == root else None)
    described = json.loads(comm.all_gather_bytes(text.encode())[root])
    return tuple(
        Entry(entry.path, tuple(shape), dtype)
        for entry, (shape, dtype) in zip(entries, described, strict=True)
    )
