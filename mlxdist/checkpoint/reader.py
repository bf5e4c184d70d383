"""The files of one checkpoint as a rank sees them, and what only other ranks see.

A rank reads the ranges that it needs. Where a checkpoint lies on the disks of several
hosts, the ranks that see a file read it for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx

from ..arrays.numpy_view import Raw, blank, raw
from ..arrays.types import Array
from ..comm.collectives import Collectives
from ..layout.entries import split_counts
from .block_file import THREADS, Reader
from .durable import DamagedError
from .manifest import Manifest, Piece, SavedArray

_MESSAGE = 16 * 2**20  # bytes that are broadcast at once


class Source:
    """Reads arrays of a checkpoint; made on all ranks together.

    Args:
        place: the checkpoint's folder.
        seen: for each rank, which of the files it sees.
    """

    def __init__(
        self,
        place: Path,
        manifest: Manifest,
        seen: Sequence[Sequence[bool]],
        comm: Collectives,
    ):
        self.manifest, self._comm = manifest, comm
        self._place = place
        self._readers: dict[int, Reader] = {}
        self._pool = ThreadPoolExecutor(THREADS, "mlxdist reader")
        files = range(len(manifest.files))
        self._seers = [[r for r in range(comm.size) if seen[r][f]] for f in files]
        self.problem: str | None = None

    def close(self) -> None:
        self._pool.shutdown()
        for reader in self._readers.values():
            reader.close()

    def verify(self) -> str | None:
        """What is wrong with this rank's share of the blocks; each is read once.

        Of the files that the same ranks see, each rank takes a part in one piece: on
        as many ranks as saved them, much of what it needs itself, and need not verify
        again.
        """
        alike: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for file, seers in enumerate(self._seers):
            blocks = range(len(self.manifest.files[file].sha256))
            alike.setdefault(tuple(seers), []).extend((file, b) for b in blocks)
        try:
            for alike_seers, every in alike.items():
                if self._comm.rank in alike_seers:
                    turn, count = alike_seers.index(self._comm.rank), len(alike_seers)
                    first, last = (t * len(every) // count for t in (turn, turn + 1))
                    self._check(every[first:last])
        except (DamagedError, OSError) as error:
            return str(error)
        return None

    def _check(self, blocks: Sequence[tuple[int, int]]) -> None:
        for file in sorted({file for file, _ in blocks}):
            reader = self._reader(file)
            own = [block for other, block in blocks if other == file]
            for _ in self._pool.map(reader.check, own):
                pass

    def unchanged(self) -> str | None:
        """What went wrong while arrays were fetched; None where nothing did."""
        try:
            for reader in self._readers.values():
                reader.unchanged()
        except DamagedError as error:
            return str(error)
        return self.problem

    def fetch(self, array: SavedArray, wanted: tuple[int, int] | None) -> Array | None:
        """Elements [start, stop) of an array, flat; None where none are wanted.

        Called for every array by every rank, since one may read for the others. After
        a first problem, which is kept, what comes means nothing.
        """
        start, stop = wanted or (0, 0)
        size = array.item_size
        result = blank(stop - start, getattr(mx, array.dtype))
        view = raw(result)
        for piece in array.pieces:
            low, high = max(piece.start, start), max(piece.start, min(piece.stop, stop))
            target = view[(low - start) * size : (high - start) * size]
            first = (low - piece.start) * size
            if len(self._seers[piece.file]) < self._comm.size:
                self._broadcast(piece, size, target, first)
            elif low < high:
                self._read(piece.file, piece.offset + first, target)
        return None if wanted is None else result

    def _broadcast(self, piece: Piece, size: int, target: Raw, first: int) -> None:
        """A piece from a rank that sees it to all; `target` begins at byte `first`."""
        root = self._seers[piece.file][0]
        end = first + target.nbytes
        for start, stop in split_counts((piece.stop - piece.start) * size, _MESSAGE):
            part = mx.zeros(stop - start, mx.uint8)
            if self._comm.rank == root:
                self._read(piece.file, piece.offset + start, raw(part))
            data = raw(self._comm.broadcast(part, root))
            low, high = max(start, first), min(stop, end)
            if low < high:
                target[low - first : high - first] = data[low - start : high - start]

    def _read(self, file: int, offset: int, out: Raw) -> None:
        if self.problem is None:
            try:
                self._reader(file).read(offset, out)
            except (DamagedError, OSError) as error:
                self.problem = str(error)

    def _reader(self, index: int) -> Reader:
        if index not in self._readers:
            file, block = self.manifest.files[index], self.manifest.block
            path = self._place / file.name
            self._readers[index] = Reader(
                path, file.sha256, file.nbytes, block=block, pool=self._pool
            )
        return self._readers[index]
