"""`World`: the ranks that train together, seen from one of them."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays import device
from ..arrays.trees import digest, entries_of, rebuild
from ..arrays.types import Array, Tree
from ..comm.agreement import agree, agree_on_lines, weight_problem
from ..comm.collectives import Collectives
from ..comm.flight_recorder import Recorder
from ..comm.mpi import MpiTransport
from ..comm.native import Group, NativeTransport
from ..launcher import environment
from ..layout.entries import fingerprint, path_key
from .finalize import keep_alive

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Backend = Literal["mpi", "ring", "jaccl", "nccl"]

_SPLITTABLE = ("mpi", "nccl")


class World:
    """The ranks that train together, seen from one of them.

    Args:
        comm: an MPI communicator of these ranks that belongs to this world alone; None
            over other backends than MPI.
        overlaps: whether ranks can compute while they communicate; None finds out:
            on several hosts, or on an accelerator.

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
        group: Group,
        backend: Backend,
        comm: Comm | None = None,
        recorder: Recorder | None = None,
        *,
        overlaps: bool | None = None,
    ):
        self.group = group
        self.rank = group.rank()
        self.size = group.size()
        self.host = socket.gethostname()
        self.backend = backend
        self.recorder = recorder or Recorder()
        own_group = split_group(group, backend, 0)
        self.native = NativeTransport(own_group, backend, self.recorder)
        self.optimizer_numbers = itertools.count(1)
        # Failed background saves: the next step or save reports them.
        self.background_errors: list[str] = []
        self.host_transport: MpiTransport | None = None
        self.is_first_on_host = True
        self._comm = comm
        if comm is not None:
            on_host, self.is_first_on_host = _ranks_on_host(comm)
            if overlaps is None:
                overlaps = on_host < self.size or not device.on_cpu()
            self.host_transport = MpiTransport(
                comm, self.native.flush, self.recorder, overlaps=overlaps
            )

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    @property
    def restarts(self) -> int:
        """How often `mlxdist run --max-restarts` has restarted this job."""
        return environment.restarts()

    @property
    def control(self) -> Collectives:
        """The transport for small data that is needed at once."""
        return self.native if self.host_transport is None else self.host_transport

    def transport(self, name: str, *, sharded: bool) -> Collectives:
        """Return the transport that a name stands for, "auto" too, outside a trace."""
        host = self.host_transport
        if host is None or name == "native":
            return self.native
        return host if name == "host" or sharded or host.overlaps else self.native

    def __repr__(self) -> str:
        return (
            f"World(rank={self.rank}, size={self.size}, host={self.host!r}, "
            f"backend={self.backend!r})"
        )

    def barrier(self) -> None:
        """Return when every rank has called it."""
        agree(self.control, "barrier")

    def print(self, *values: object, **options: Any) -> None:
        """`print` on rank 0 alone, flushed."""
        if self.is_root:
            print(*values, **{"flush": True, **options})

    def seed(self, seed: int) -> None:
        """Seed MLX's random numbers: the same model everywhere, other dropout on each.

        Rank 0 takes `seed` itself, and its parameters reach all ranks by `broadcast`
        or `DistributedOptimizer.init(model)`, so that a run starts from the same model
        on any number of ranks. The other ranks take seeds of their own.
        """
        mixed = np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)
        mx.random.seed(seed if self.is_root else int(mixed[0]))

    def mean(self, metrics: Tree, weight: float | None = None) -> Tree:
        """Average numbers over the ranks: a number, an array, or a tree of them.

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
        vector = np.concatenate([np.zeros(0), *(value.reshape(-1) for value in values)])
        means = _split(self._weighted_mean(vector, weights), values)
        leaves = {
            path: _like(leaf, mean)
            for (path, leaf), mean in zip(flat, means, strict=True)
        }
        return rebuild(metrics, leaves)

    def _weighted_mean(
        self, vector: np.ndarray[Any, np.dtype[np.float64]], weights: list[float]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        rows = self.control.all_gather_words(vector.view(np.uint64)).view(np.float64)
        total = np.zeros_like(vector)
        for row, weight in zip(rows, weights, strict=True):
            if weight:
                total += weight * row
        if not sum(weights):
            raise ValueError("World.mean: every rank has weight 0")
        return total / sum(weights)

    def broadcast(self, tree: Tree, root: int = 0) -> Tree:
        """Return the root's arrays on every rank.

        Args:
            tree: a tree of arrays, or a module, whose parameters are then replaced in
                place, the frozen ones too. Same paths, shapes and dtypes on all ranks.
            root: the rank whose values count.

        Returns:
            A tree of new arrays; the module itself where it was one.
        """
        arrays = tree.parameters() if isinstance(tree, Module) else tree
        entries = entries_of(arrays)
        lines = [f"root {root}", *map(str, entries)]
        agree_on_lines(self.control, "World.broadcast", lines)
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
        """Return whether all ranks hold the same paths, shapes, dtypes and bits.

        Takes a tree of arrays or a module. Hashes all of it: about 2 s a gigabyte.
        """
        checksum = digest(tree)
        agree(self.control, "World.identical")
        every = self.control.all_gather_words(checksum)
        return bool((every == every[0]).all())

    def duplicate(self) -> Comm:
        """Return a new MPI communicator of these ranks. Called by all of them.

        Raises:
            ValueError: over other backends than MPI.
        """
        if self._comm is None:
            raise ValueError(f"this works over MPI, and not over {self.backend!r}")
        return self._comm.Dup()

    def split(self, color: int) -> World:
        """Return a world of the ranks that gave the same color, in rank order.

        Raises:
            ValueError: on a backend that can't: MLX splits "mpi" and "nccl" groups.
        """
        if self.size == 1:
            return self
        if self.backend not in _SPLITTABLE:
            raise ValueError(
                f"the {self.backend!r} backend can't be split; use mlxdist.init('mpi')"
            )
        is_valid = isinstance(color, int) and color >= 0
        problem = None if is_valid else f"color is {color!r}; it must be 0 or more"
        agree(self.control, "World.split", problem=problem)
        self.native.flush()
        group = split_group(self.group, self.backend, color)
        comm = None if self._comm is None else self._comm.Split(color, self.rank)
        return World(group, self.backend, comm, Recorder(self.recorder))


def _ranks_on_host(comm: Comm) -> tuple[int, bool]:
    """How many ranks share this host's memory, and whether this is the first one."""
    from mpi4py import MPI

    on_host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    result = on_host.Get_size(), on_host.Get_rank() == 0
    on_host.Free()
    return result


def split_group(group: Group, backend: Backend, color: int) -> Group:
    """Return a group of the ranks of one color; the same group if it can't be split."""
    if group.size() == 1 or backend not in _SPLITTABLE:
        return group
    part = group.split(color)
    keep_alive(part)
    return part


def _number(path: str, leaf: object) -> Array:
    if isinstance(leaf, mx.array):
        wide = leaf.dtype in (mx.bfloat16, mx.complex64)
        return np.array(leaf.astype(mx.float32) if wide else leaf)
    if isinstance(leaf, int | float):
        return leaf
    raise ValueError(
        f"World.mean: {path or 'the metric'} is a {type(leaf).__name__}; it must be a "
        "number or an mx.array"
    )


def _split(vector: Array, like: list[Array]) -> list[Array]:
    """Cut a vector into arrays of the sizes and shapes of others."""
    ends = np.cumsum([array.size for array in like], dtype=int)
    parts = np.split(vector, ends)[:-1]
    return [part.reshape(a.shape) for part, a in zip(parts, like, strict=True)]


def _like(leaf: object, mean: Array) -> Array:
    return mx.array(mean, mx.float32) if isinstance(leaf, mx.array) else float(mean)
