"""Files in blocks, each with a sha256: hashed when written, verified when read.

Writes bypass the page cache where the system allows it: that is faster for files of
gigabytes, and leaves the cache to the training data. A rank that needs a part of a file
reads and verifies only the blocks of that part.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np

from ..arrays.types import Raw
from ..layout.entries import split_counts
from .durable import DamagedError, create, flush, open_file, write_all

BLOCK = 4 * 2**20  # bytes
THREADS = 3
_BUFFERS = 5  # three are hashed and written, one waits, one is filled
_PAGE = 4096
_QUEUED = 1000  # blocks that wait to be verified


class Writer:
    """Writes a new file in order, a block at a time; threads hash and write blocks.

    A context manager, which closes the file.
    """

    def __init__(self, path: Path):
        self._file = -1
        self._full: Queue[tuple[mmap.mmap, int, int] | None] = Queue()
        self._free: Queue[mmap.mmap] = Queue()
        self._buffers: list[mmap.mmap] = []
        self._threads: list[Thread] = []
        try:
            # Page-aligned, for direct writes.
            self._buffers += [mmap.mmap(-1, BLOCK) for _ in range(_BUFFERS)]
            self._file = create(path)
        except BaseException:
            self.close()
            raise
        for buffer in self._buffers:
            self._free.put(buffer)
        self._digests: dict[int, str] = {}
        self._error: Exception | None = None
        self._buffer, self._filled = self._free.get(), 0
        self.nbytes = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, which are copied. Raises OSError, also for earlier bytes."""
        rest = memoryview(data).cast("B")
        while len(self._threads) < THREADS:  # here, to inherit this thread's priority
            thread = Thread(target=self._work, name="mlxdist writer", daemon=True)
            thread.start()
            self._threads.append(thread)
        while rest.nbytes:
            count = min(BLOCK - self._filled, rest.nbytes)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == BLOCK:
                self._send()

    def finish(self) -> tuple[str, ...]:
        """Flush the file to the disk and return the sha256 of each block."""
        self._send()
        self._end()
        if self._error is not None:
            raise self._error
        os.ftruncate(self._file, self.nbytes)
        flush(self._file)
        return tuple(digest for _, digest in sorted(self._digests.items()))

    def close(self) -> None:
        """End the threads, close the file, free the buffers. May be called twice."""
        self._end()
        if self._file >= 0:
            with suppress(OSError):  # the data was flushed, or is given up
                os.close(self._file)
            self._file = -1
        while self._buffers:
            with suppress(BufferError):  # a view in the traceback of an error keeps it
                self._buffers.pop().close()

    def _end(self) -> None:
        for _ in self._threads:
            self._full.put(None)
        while self._threads:
            self._threads.pop().join()

    def _send(self) -> None:
        if self._error is not None:
            raise self._error
        if self._filled:
            self._full.put((self._buffer, self._filled, self.nbytes))
            self.nbytes += self._filled
            self._buffer, self._filled = self._free.get(), 0

    def _work(self) -> None:
        while (block := self._full.get()) is not None:
            try:
                if self._error is None:
                    self._put(*block)
            except Exception as error:  # raised at the next block
                self._error = error
            self._free.put(block[0])

    def _put(self, buffer: mmap.mmap, count: int, offset: int) -> None:
        aligned = -(-count // _PAGE) * _PAGE  # `finish` truncates the file
        with memoryview(buffer) as view, view[:count] as data, view[:aligned] as pages:
            self._digests[offset] = hashlib.sha256(data).hexdigest()
            write_all(self._file, pages, offset)


class Reader:
    """Reads parts of a file, and verifies the blocks that they touch.

    A context manager, which closes the file.

    Args:
        sha256: of each block; empty or None for a file without checksums.
        nbytes: the expected size; None accepts any.
        pool: threads that read and hash blocks, which other files may share.

    Raises:
        DamagedError: if the file is missing, a link, or of another size.
    """

    def __init__(
        self,
        path: Path,
        sha256: Sequence[str] | None = None,
        nbytes: int | None = None,
        *,
        block: int = BLOCK,
        pool: Executor | None = None,
    ):
        self.path, self._sha256, self._block = path, sha256, block
        self._pool = pool
        self._last: tuple[int, Raw] | None = None
        self._verified: set[int] = set()
        self._file = open_file(path)
        try:
            self._version = _version(self._file)
            self.nbytes = self._version[0]
            if nbytes is not None and self.nbytes != nbytes:
                raise DamagedError(f"{path} has {self.nbytes} bytes, wanted {nbytes}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1

    def reopen(self) -> None:
        """Open the file again if it was closed.

        Raises:
            DamagedError: if it is missing, or was written to meanwhile.
        """
        if self._file < 0:
            self._file = open_file(self.path)
            self.check_unchanged()

    def read(self, offset: int, out: Raw) -> None:
        """Fill `out`, an array of uint8, with the bytes at `offset`."""
        end = offset + out.nbytes
        whole = []
        for index in range(offset // self._block, -(-end // self._block)):
            start, stop = self._block_range(index)
            low, high = max(start, offset), min(stop, end)
            target = out[low - offset : high - offset]
            if (low, high) == (start, stop):
                whole.append((index, target))
            else:
                target[:] = self._cached_block(index)[low - start : high - start]
        if self._pool is None:
            for index, target in whole:
                self._fill(index, target)
            return
        for future in [self._pool.submit(self._fill, *block) for block in whole]:
            future.result()

    def check(self, index: int) -> None:
        """Verify one block, once and for all. Raises DamagedError."""
        start, stop = self._block_range(index)
        self._fill(index, np.empty(stop - start, np.uint8))
        self._verified.add(index)

    def checksum(self) -> int:
        """Return the CRC-32 of the whole file."""
        crc = 0
        for index in range(-(-self.nbytes // self._block)):
            crc = zlib.crc32(self._cached_block(index).data, crc)
        return crc

    def check_unchanged(self) -> None:
        """Raise DamagedError if the file was written to since it was opened."""
        if _version(self._file) != self._version:
            raise DamagedError(f"{self.path} was modified while it was read")

    def _block_range(self, index: int) -> tuple[int, int]:
        return index * self._block, min((index + 1) * self._block, self.nbytes)

    def _cached_block(self, index: int) -> Raw:
        # Small arrays share a block and are read in order, so the last one is kept.
        if self._last is None or self._last[0] != index:
            start, stop = self._block_range(index)
            data = np.empty(stop - start, np.uint8)
            self._fill(index, data)
            self._last = (index, data)
        return self._last[1]

    def _fill(self, index: int, out: Raw) -> None:
        start, _ = self._block_range(index)
        view, done = out.data, 0
        while done < out.nbytes:
            count = os.preadv(self._file, [view[done:]], start + done)
            if not count:
                raise DamagedError(f"{self.path} ends at byte {start + done}")
            done += count
        if index in self._verified or not self._sha256:
            return
        if hashlib.sha256(view).hexdigest() != self._sha256[index]:
            raise DamagedError(
                f"{self.path} is damaged: the sha256 of bytes {start} to "
                f"{start + out.nbytes} differs from that at writing"
            )


def check_blocks(
    reader: Reader, indices: Sequence[int], pool: Executor
) -> Iterator[int]:
    """Verify blocks in threads; yield the number of each when it is done.

    Few are queued at a time, since a file may have millions.

    Raises:
        DamagedError: if one is not what was written.
    """
    for start, stop in split_counts(len(indices), _QUEUED):
        batch = indices[start:stop]
        for index, _ in zip(batch, pool.map(reader.check, batch), strict=True):
            yield index


def _version(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns


def read_small(path: Path, limit: int) -> bytes:
    """Return all of a file of at most `limit` bytes. Raises DamagedError."""
    with Reader(path) as reader:
        if reader.nbytes > limit:
            raise DamagedError(f"{path} has {reader.nbytes} bytes, more than {limit}")
        data = np.empty(reader.nbytes, np.uint8)
        reader.read(0, data)
        return data.tobytes()
