"""Reading the arrays of one checkpoint, from this rank's disk or through another rank.

A rank reads the ranges that it needs. If the files are on the disks of several hosts,
a rank that sees a file broadcasts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..arrays.dtypes import dtype_of
from ..arrays.numpy_view import raw, uninitialized
from ..arrays.types import Array, Raw
from ..comm.collectives import Collectives
from ..layout.entries import split_counts
from .block_file import BLOCK, THREADS, Reader, check_blocks
from .collective import attempt
from .durable import DamagedError
from .manifest import Identity, Manifest, Piece, SavedArray, SavedFile

_BROADCAST_BYTES = 16 * 2**20  # of one message
_MAX_OPEN = 64  # files of one checkpoint; many systems allow a process 256 or 1,024


class Contents(NamedTuple):
    """The arrays to load and the files that hold them.

    Attributes:
        folder: of the files.
        manifest: None for plain MLX files, which have no step, counters or extra.
    """

    folder: Path
    files: tuple[SavedFile, ...]
    arrays: tuple[SavedArray, ...]
    manifest: Manifest | None = None

    @property
    def by_identity(self) -> dict[Identity, SavedArray]:
        return {array.identity: array for array in self.arrays}


class FileReaders:
    """Readers of the files of a checkpoint, each opened at its first use.

    A context manager, which closes them. Of many files only some are open at a time.
    """

    def __init__(self, contents: Contents, pool: Executor | None = None):
        self._contents, self._pool = contents, pool
        manifest = contents.manifest
        self._block = BLOCK if manifest is None else manifest.block
        self._readers: dict[int, Reader] = {}
        self._open: dict[int, Reader] = {}  # in the order of their last use

    def __enter__(self) -> FileReaders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def __getitem__(self, index: int) -> Reader:
        """Return a file's open reader. No read of another one may be under way."""
        if self._open.pop(index, None) is None and len(self._open) == _MAX_OPEN:
            self._open.pop(next(iter(self._open))).close()
        if index not in self._readers:
            file = self._contents.files[index]
            self._readers[index] = Reader(
                self._contents.folder / file.name,
                file.sha256,
                file.nbytes,
                block=self._block,
                pool=self._pool,
            )
        reader = self._readers[index]
        reader.reopen()
        self._open[index] = reader
        return reader

    def check_unchanged(self) -> None:
        """Raise DamagedError if a file that was read was written to meanwhile."""
        for index in self._readers:
            self[index].check_unchanged()


class ArrayReader:
    """Reads arrays of a checkpoint. Made and used by all ranks together.

    A context manager, which closes the files.

    Args:
        seen: for each rank, which of the files it sees.

    Attributes:
        problem: the first error on this rank; what is fetched after it means nothing.
    """

    def __init__(
        self, contents: Contents, seen: Sequence[Sequence[bool]], comm: Collectives
    ):
        self.comm = comm
        self.problem: str | None = None
        self._files = contents.files
        self._pool = ThreadPoolExecutor(THREADS, "mlxdist reader")
        self._readers = FileReaders(contents, self._pool)
        self._ranks_with = [  # of each file
            tuple(rank for rank in range(comm.size) if seen[rank][file])
            for file in range(len(contents.files))
        ]

    def __enter__(self) -> ArrayReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._readers.close()

    def verify(self) -> None:
        """Verify this rank's share of the blocks. Raises DamagedError or OSError.

        Ranks that see the same files share them, each a contiguous part. On as many
        ranks as saved them, that is mostly the part that the rank needs itself, and a
        block is read and hashed once.
        """
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for file, ranks in enumerate(self._ranks_with):
            indices = range(len(self._files[file].sha256))
            groups.setdefault(ranks, []).extend((file, index) for index in indices)
        for ranks, blocks in groups.items():
            if self.comm.rank in ranks:
                turn, count = ranks.index(self.comm.rank), len(ranks)
                first, last = (t * len(blocks) // count for t in (turn, turn + 1))
                self._verify(blocks[first:last])

    def _verify(self, blocks: Sequence[tuple[int, int]]) -> None:
        for file, group in groupby(blocks, itemgetter(0)):
            indices = [index for _, index in group]
            for _ in check_blocks(self._readers[file], indices, self._pool):
                pass

    def require_success(self) -> None:
        """Raise DamagedError if a fetch failed, or a file was written to meanwhile."""
        if self.problem is not None:
            raise DamagedError(self.problem)
        self._readers.check_unchanged()

    def fetch(self, array: SavedArray, start: int, stop: int) -> Array:
        """Return elements [start, stop) of an array, flat.

        Called for every array by every rank, also for no elements, since a rank may
        read for the others.
        """
        size = array.item_size
        allocate = partial(uninitialized, dtype=dtype_of(array.dtype))
        result, problem = attempt(partial(allocate, stop - start))
        if problem is not None:  # of too little memory; other ranks may need a piece
            self.problem = self.problem or f"{array.name}: {problem}"
            result, stop = allocate(0), start
        view = raw(result)
        for piece in array.pieces:
            low, high = max(piece.start, start), max(piece.start, min(piece.stop, stop))
            target = view[(low - start) * size : (high - start) * size]
            first = (low - piece.start) * size
            if len(self._ranks_with[piece.file]) < self.comm.size:
                self._broadcast(piece, size, target, first)
            elif low < high:
                self._read(piece.file, piece.offset + first, target)
        return result

    def _broadcast(self, piece: Piece, size: int, target: Raw, first: int) -> None:
        """Broadcast a piece; `target` takes the part of it from byte `first` on."""
        root = self._ranks_with[piece.file][0]
        end = first + target.nbytes
        nbytes = (piece.stop - piece.start) * size
        for start, stop in split_counts(nbytes, _BROADCAST_BYTES):
            part = mx.zeros(stop - start, mx.uint8)
            if self.comm.rank == root:
                self._read(piece.file, piece.offset + start, raw(part))
            data = raw(self.comm.broadcast(part, root))
            low, high = max(start, first), min(stop, end)
            if low < high:
                target[low - first : high - first] = data[low - start : high - start]

    def _read(self, file: int, offset: int, out: Raw) -> None:
        if self.problem is None:
            _, self.problem = attempt(lambda: self._readers[file].read(offset, out))
