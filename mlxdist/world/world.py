"""`World`: the ranks that train together, seen from one of them."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.nn import Module

from ..arrays import device
from ..arrays.trees import digest
from ..arrays.types import Tree
from ..comm.agreement import MismatchError, agree, result_or_problem, weight_problem
from ..comm.collectives import Collectives
from ..comm.flight_recorder import Recorder
from ..comm.mpi import MpiTransport
from ..comm.native import Group, NativeTransport
from ..launcher import environment
from ..launcher.visible_text import visible
from ..layout.entries import fingerprint
from .broadcast import broadcast_tree
from .groups import SPLITTABLE, Backend, make_peer_streams, split_group
from .metrics import read_metrics, weighted_mean
from .process import on_any_rank, ranks_on_host

if TYPE_CHECKING:
    from mpi4py.MPI import Comm


class World:
    """The ranks that train together, seen from one of them.

    Args:
        comm: an MPI communicator of these ranks that belongs to this world alone; None
            where MPI did not start them.
        mpi_group: MLX's group of these ranks over MPI, where `group` is another one.
        overlaps: whether ranks can compute while they communicate; None finds out:
            on several hosts, or where one of the ranks computes on an accelerator.

    Attributes:
        rank: this process's number, from 0: an integer, and no method as in MLX.
        size: how many ranks there are, an integer too.
        has_uneven_shares: whether ranks have more examples than others in the last
            batch of a `ShardedSampler`, so that `update` needs a weight.
        host: the name of this machine.
        backend: the data plane, which carries MLX's collectives: "mpi", "ring", "jaccl"
            or "nccl". Where MPI started the ranks, it is the control plane of each.
        group: the `mx.distributed` group of these ranks, for your own collectives.
            Over MPI mlxdist has another one for itself, and the two never meet.
        native: the transport through `mx.distributed`.
        peer_streams: messages behind what computes; None where nothing sends them.
        host_transport: the transport through mpi4py; None without MPI.
    """

    def __init__(
        self,
        group: Group,
        backend: Backend,
        comm: Comm | None = None,
        recorder: Recorder | None = None,
        *,
        mpi_group: Group | None = None,
        overlaps: bool | None = None,
    ):
        self.group = group
        self._mpi_group = mpi_group
        self.rank = group.rank()
        self.size = group.size()
        self.has_uneven_shares = False
        self.host = visible(socket.gethostname())
        self.backend = backend
        self.recorder = recorder or Recorder()
        native_group = split_group(group, backend, 0)
        self.native = NativeTransport(native_group, backend, self.recorder)
        # Optimizers that all ranks have initialized, and so the same number on all.
        self.optimizer_count = 0
        # Failed background saves: the next step or save reports them.
        self.background_errors: list[str] = []
        self.host_transport: MpiTransport | None = None
        self.is_first_on_host = True
        self.is_closed = False
        self._process = os.getpid()
        # What `close` calls, the last one first.
        self.at_close = ExitStack()
        self._comm = comm
        if comm is not None:
            on_host, self.is_first_on_host = ranks_on_host(comm)
            if overlaps is None:
                computes_aside = on_host < self.size or not device.on_cpu()
                overlaps = on_any_rank(comm, condition=computes_aside)
            self.host_transport = MpiTransport(
                comm, self.native.flush, self.recorder, overlaps=overlaps
            )
            self.at_close.callback(self.host_transport.close)
        self.peer_streams = make_peer_streams(
            self.host_transport, self._mpi_group or group, self.recorder
        )
        if self.peer_streams is not None:
            self.at_close.callback(self.peer_streams.wait)

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
        self.check_usable()
        return self.native if self.host_transport is None else self.host_transport

    def transport(self, name: str, *, sharded: bool) -> Collectives:
        """Return the transport that a name stands for, "auto" too, outside a trace."""
        self.check_usable()
        host = self.host_transport
        if host is None or name == "native":
            return self.native
        is_faster = self.backend == "mpi" and (sharded or host.overlaps)
        return host if name == "host" or is_faster else self.native

    def __repr__(self) -> str:
        return (
            f"World(rank={self.rank}, size={self.size}, host={self.host!r}, "
            f"backend={self.backend!r})"
        )

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:  # other ranks may not have failed, and don't close it then
            self.close()

    def close(self) -> None:
        """End this world on all ranks, which all call it; the end of a `with` does.

        Ends its threads, frees its MPI communicators, restores the process's hooks, and
        closes the worlds that were split from it. Its collectives raise RuntimeError
        from then on, and `mlxdist.init()` makes a new world of the same ranks. MPI goes
        on until the process ends, and so does `faulthandler`. Closing again does
        nothing.
        """
        if self.is_closed:
            return
        agree(self.control, "World.close")
        self.native.flush()
        self.at_close.close()
        self.is_closed = True

    def check_usable(self) -> None:
        """Raise RuntimeError if this world was closed, or this process forked."""
        if self.is_closed:
            raise RuntimeError(
                "this world is closed; mlxdist.init() joins the ranks again"
            )
        if self.size > 1 and os.getpid() != self._process:
            raise RuntimeError(
                f"this process was forked from rank {self.rank}, and is no rank: MLX "
                "and MPI don't survive a fork. Start it by multiprocessing's 'spawn', "
                "or by subprocess, and mlxdist.init() gives it a world of one"
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
            The tree with `sum(weight * metric) / sum(weight)`: numbers, NumPy's too, as
            float or complex; MLX's arrays as float32, complex64 or float64, NumPy's as
            float64 or complex128. Added in float64 and in rank order, so that all ranks
            get the same bits. One collective of 8 bytes a number, 16 a complex one.

        Raises:
            MismatchError: on all ranks, where the trees differ, one has a leaf that is
                no number, or no rank has any weight.
        """
        local, problem = result_or_problem(read_metrics, metrics)
        problem = weight_problem(weight) or problem
        lines = [] if local is None else local.lines
        weights = agree(
            self.control,
            "World.mean",
            fingerprint(lines),
            lambda: lines,
            number=1.0 if weight is None or problem else float(weight),
            problem=problem,
        )
        assert local is not None
        if not any(weights):
            raise MismatchError("World.mean refused: every rank has weight 0")
        words = self.control.all_gather_words(local.vector.view(np.uint64))
        return local.with_values(weighted_mean(words.view(np.float64), weights))

    def broadcast(self, tree: Tree, root: int = 0) -> Tree:
        """Return the root's arrays on every rank.

        Args:
            tree: a tree of arrays with the same paths on all ranks; those of the root
                count, with their shapes and dtypes. Or a module, whose parameters are
                then replaced in place, the frozen ones too: they have the same shapes
                and dtypes on all ranks.
            root: the rank whose values count.

        Returns:
            A tree of new arrays; the module itself where it was one.

        Raises:
            MismatchError: on all ranks, where one passes something else.
        """
        result = broadcast_tree(self.control, tree, root)
        if isinstance(tree, Module):
            tree.update(result)
            return tree
        return result

    def identical(self, tree: Tree) -> bool:
        """Return whether all ranks hold the same paths, shapes, dtypes and bits.

        Takes a tree of arrays or a module. Hashes all of it: about 2 s a gigabyte.
        """
        checksum, problem = result_or_problem(digest, tree)
        agree(self.control, "World.identical", problem=problem)
        assert checksum is not None
        every = self.control.all_gather_words(checksum)
        return bool((every == every[0]).all())

    def duplicate(self) -> Comm:
        """Return a new MPI communicator of these ranks. Called by all of them.

        Raises:
            ValueError: MPI did not start the ranks.
        """
        self.check_usable()
        if self._comm is None:
            raise ValueError(f"this needs MPI, and not {self.backend!r} alone")
        return self._comm.Dup()

    def split(self, color: int) -> World:
        """Return a world of the ranks that gave the same color, in rank order.

        Over MPI, where MLX can't split a group, as over ring and jaccl.

        Raises:
            ValueError: there is no MPI either.
        """
        group, backend = self.group, self.backend
        if self._mpi_group is not None and backend not in SPLITTABLE:
            group, backend = self._mpi_group, "mpi"
        if self.size > 1 and backend not in SPLITTABLE:
            raise ValueError(
                f"the {self.backend!r} backend can't be split; use mlxdist.init('mpi')"
            )
        is_valid = isinstance(color, int | np.integer) and 0 <= color < 2**31
        problem = (
            None if is_valid else f"color is {color!r}; it must be from 0 to 2^31-1"
        )
        agree(self.control, "World.split", problem=problem)
        self.native.flush()
        group = split_group(group, backend, int(color))
        comm = None if self._comm is None else self._comm.Split(int(color), self.rank)
        part = World(group, backend, comm, Recorder(self.recorder))
        self.at_close.callback(part.close)
        return part
