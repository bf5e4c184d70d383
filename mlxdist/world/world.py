"""`World`: the ranks that train together, seen from one of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays.trees import digest, entries_of, rebuild
from ..arrays.types import Tree
from ..comm.agreement import agree, weight_problem
from ..comm.collectives import Collectives
from ..comm.flight_recorder import Recorder
from ..comm.mpi import Host
from ..comm.native import Native
from ..layout.entries import Entry, fingerprint, path_key
from .finalize import keep_alive

Backend = Literal["mpi", "ring", "jaccl", "nccl"]

_SPLITTABLE = ("mpi", "nccl")


class World:
    """The ranks that train together, seen from one of them.

    Attributes:
        rank: this process's number, from 0.
        size: how many ranks there are.
        host: the name of this machine.
        backend: what carries MLX's collectives: "mpi", "ring", "jaccl" or "nccl".
        group: the `mx.distributed` group of these ranks, for your own collectives.
            Over MPI mlxdist has another one for itself, and the two never meet.
        native: the transport through `mx.distributed`.
        host_transport: the transport through mpi4py; None on other backends.
    """

    def __init__(
        self,
        group: Any,
        backend: Backend,
        comm: Any = None,
        recorder: Recorder | None = None,
    ):
        self.group = group
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.host = socket.gethostname()
        self.backend = backend
        self.recorder = recorder or Recorder()
        self.native = Native(split_group(group, backend, 0), backend, self.recorder)
        self._comm = comm
        # Failed background saves: the next step or save reports them.
        self.background_errors: list[str] = []
        self.host_transport: Host | None = None
        self.is_first_on_host = True
        if comm is not None:
            on_host, first = _neighbours(comm)
            self.is_first_on_host = first
            self.host_transport = Host(
                comm,
                self.native.flush,
                self.recorder,
                overlaps=on_host < self.size or mx.default_device() == mx.gpu,
            )

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    @property
    def restarts(self) -> int:
        """How often `mlxdist run --max-restarts` has started this job again."""
        return int(os.environ.get("MLXDIST_RESTARTS", "0"))

    @property
    def control(self) -> Collectives:
        """The transport for what is small and needed at once."""
        return self.native if self.host_transport is None else self.host_transport

    def transport(self, name: str, *, sharded: bool, traced: bool) -> Collectives:
        """The transport that a name stands for, "auto" too, in a given case."""
        if traced and name == "host":
            raise ValueError(
                'transport="host" works on evaluated arrays and can\'t be traced by '
                'mx.compile: use transport="native" or "auto", or call update() outside'
            )
        host = self.host_transport
        if host is None or traced or name == "native":
            return self.native
        return host if name == "host" or sharded or host.overlaps else self.native

    def __repr__(self) -> str:
        return (
            f"World(rank={self.rank}, size={self.size}, host={self.host!r}, "
            f"backend={self.backend!r})"
        )

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        agree(self.control, "barrier", 0, list)

    def print(self, *values: object, **options: Any) -> None:
        """`print` on rank 0 alone, flushed."""
        if self.is_root:
            print(*values, **{"flush": True, **options})

    def seed(self, seed: int) -> None:
        """Seeds MLX's random numbers: the same model everywhere, other dropout on each.

        Rank 0 takes `seed` itself, and its parameters reach all ranks by `broadcast`
        or `DistributedOptimizer.init(model)`, so that a run starts from the same model
        on any number of ranks. The other ranks take seeds of their own.
        """
        mixed = np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)
        mx.random.seed(seed if self.is_root else int(mixed[0]))

    def mean(self, metrics: Tree, weight: float | None = None) -> Tree:
        """Averages numbers over the ranks: a number, an array, or a tree of them.

        Args:
            metrics: the same tree on each rank. Arrays are evaluated.
            weight: how much this rank counts, such as its number of tokens; 1 where
                it is None. 0 leaves its metrics out, even nan.

        Returns:
            The tree with `sum(weight * metric) / sum(weight)`: Python numbers as
            floats, arrays as float32 arrays. Added in float64 and in rank order, so
            that all ranks get the same bits. One collective of 8 bytes a number.

        Raises:
            MismatchError: where the trees differ, or no rank has any weight.
        """
        flat = sorted(tree_flatten(metrics), key=lambda item: path_key(item[0]))
        values = [np.array(_number(path, leaf), np.float64) for path, leaf in flat]
        shapes = [
            f"{path}{list(v.shape)}" for (path, _), v in zip(flat, values, strict=True)
        ]
        weights = agree(
            self.control,
            "World.mean",
            fingerprint(shapes),
            lambda: shapes,
            number=1.0 if weight is None else float(weight),
            problem=weight_problem(weight),
        )
        own = np.concatenate([np.zeros(0), *(value.reshape(-1) for value in values)])
        every = self.control.all_gather_words(own.view(np.uint64)).view(np.float64)
        total = np.zeros_like(own)
        for row, rank_weight in zip(every, weights, strict=True):
            if rank_weight:
                total += rank_weight * row
        if not sum(weights):
            raise ValueError("World.mean: every rank has weight 0")
        ends = np.cumsum([v.size for v in values], dtype=int)
        parts = np.split(total / sum(weights), ends)[:-1]
        means = {
            path: _like(leaf, part.reshape(value.shape))
            for (path, leaf), value, part in zip(flat, values, parts, strict=True)
        }
        return rebuild(metrics, means)

    def broadcast(self, tree: Tree, root: int = 0) -> Tree:
        """The root's arrays on every rank.

        Args:
            tree: a tree of arrays, or a module, whose parameters are then replaced in
                place, the frozen ones too. Same paths, shapes and dtypes on all ranks.
            root: the rank whose values count.

        Returns:
            A tree of new arrays; the module itself where it was one.
        """
        arrays = tree.parameters() if isinstance(tree, Module) else tree
        entries = entries_of(arrays)
        self.agree_on("World.broadcast", entries, [f"root {root}"])
        if not 0 <= root < self.size:
            raise ValueError(f"root is {root}; the ranks go from 0 to {self.size - 1}")
        flat = dict(tree_flatten(arrays))
        sent = {e.path: self.control.broadcast(flat[e.path], root) for e in entries}
        result = rebuild(arrays, sent)
        if isinstance(tree, Module):
            tree.update(result)
            return tree
        return result

    def identical(self, tree: Tree) -> bool:
        """Whether all ranks hold the same paths, shapes, dtypes and bits.

        Takes a tree of arrays or a module. Hashes all of it: about 2 s a gigabyte.
        """
        own = digest(tree)
        agree(self.control, "World.identical", 0, list)
        every = self.control.all_gather_words(own)
        return bool((every == every[0]).all())

    def duplicate(self) -> Any:
        """An MPI communicator of these ranks for one purpose alone. Called by all.

        Raises:
            ValueError: over other backends than MPI.
        """
        if self._comm is None:
            raise ValueError(f"this works over MPI, and not over {self.backend!r}")
        return self._comm.Dup()

    def agree_on(
        self, call: str, entries: Sequence[Entry], settings: Sequence[str] = ()
    ) -> None:
        """Refuses a call on all ranks where parameters or settings differ."""
        lines = [*settings, *map(str, entries)]
        agree(self.control, call, fingerprint(lines), lambda: lines)

    def split(self, color: int) -> World:
        """A world of the ranks that gave the same color, in the order of their ranks.

        Raises:
            ValueError: on a backend that can't: MLX splits "mpi" and "nccl" groups.
        """
        if self.size == 1:
            return self
        if self.backend not in _SPLITTABLE:
            raise ValueError(
                f"the {self.backend!r} backend can't be split; use mlxdist.init('mpi')"
            )
        bad = not isinstance(color, int) or color < 0
        agree(
            self.control,
            "World.split",
            0,
            list,
            problem=f"color is {color!r}; it must be 0 or more" if bad else None,
        )
        self.native.flush()
        group = split_group(self.group, self.backend, color)
        comm = None if self._comm is None else self._comm.Split(color, self.rank)
        return World(group, self.backend, comm, Recorder(self.recorder))


def _neighbours(comm: Any) -> tuple[int, bool]:
    """How many ranks share this host's memory, and whether this is their first."""
    from mpi4py import MPI

    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
    result = neighbours.Get_size(), neighbours.Get_rank() == 0
    neighbours.Free()
    return result


def split_group(group: Any, backend: Backend, color: int) -> Any:
    """A group of those with one color; the same group where it can't be split."""
    if group.size() == 1 or backend not in _SPLITTABLE:
        return group
    part = group.split(color)
    keep_alive(part)
    return part


def _number(path: str, leaf: Any) -> Any:
    if isinstance(leaf, mx.array):
        wide = leaf.dtype in (mx.bfloat16, mx.complex64)
        return np.array(leaf.astype(mx.float32) if wide else leaf)
    if isinstance(leaf, int | float):
        return leaf
    raise ValueError(
        f"World.mean: {path or 'the metric'} is a {type(leaf).__name__}; it must be a "
        "number or an mx.array"
    )


def _like(leaf: Any, mean: Any) -> Any:
    return mx.array(mean, mx.float32) if isinstance(leaf, mx.array) else float(mean)
