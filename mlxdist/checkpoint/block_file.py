"""Files in blocks, each with its sha256: hashed when written, verified when read.

What is written goes to the disk itself, around the page cache where the system lets
it: that is faster for files of gigabytes, and leaves the cache to the training data.
A rank that needs a part of a file reads and verifies the blocks of that part alone.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np

from ..arrays.numpy_view import Raw
from .durable import DamagedError, create, flush, open_file, write_all

BLOCK = 4 * 2**20
THREADS = 3
_BUFFERS = 5  # blocks: three are hashed and written, one waits, one is filled
_PAGE = 4096


class Writer:
    """Writes a new file from its beginning to its end, a block at a time.

    Blocks are hashed and written by threads; `write` copies what it is given.
    """

    def __init__(self, path: Path):
        self._file = create(path)
        self._todo: Queue[tuple[mmap.mmap, int, int] | None] = Queue()
        self._free: Queue[mmap.mmap] = Queue()
        for _ in range(_BUFFERS):
            self._free.put(mmap.mmap(-1, BLOCK))  # aligned as direct writes need it
        self._threads: list[Thread] = []
        self._digests: dict[int, str] = {}
        self._error: Exception | None = None
        self._buffer, self._filled = self._free.get(), 0
        self.nbytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes. Raises OSError for earlier ones as well."""
        rest = memoryview(data).cast("B")
        if not self._threads:  # as urgent as who writes
            self._threads = [
                Thread(target=self._work, daemon=True) for _ in range(THREADS)
            ]
            for thread in self._threads:
                thread.start()
        while rest.nbytes:
            count = min(BLOCK - self._filled, rest.nbytes)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == BLOCK:
                self._send()

    def finish(self) -> tuple[str, ...]:
        """Has all of it on the disk, and returns the sha256 of each block."""
        self._send()
        self._end()
        if self._error is not None:
            raise self._error
        os.ftruncate(self._file, self.nbytes)
        flush(self._file)
        return tuple(digest for _, digest in sorted(self._digests.items()))

    def close(self) -> None:
        self._end()
        os.close(self._file)

    def _end(self) -> None:
        for _ in self._threads:
            self._todo.put(None)
        while self._threads:
            self._threads.pop().join()

    def _send(self) -> None:
        if self._error is not None:
            raise self._error
        if self._filled:
            self._todo.put((self._buffer, self._filled, self.nbytes))
            self.nbytes += self._filled
            self._buffer, self._filled = self._free.get(), 0

    def _work(self) -> None:
        while (block := self._todo.get()) is not None:
            try:
                if self._error is None:
                    self._put(*block)
            except Exception as error:  # raised where the next block is written
                self._error = error
            self._free.put(block[0])

    def _put(self, buffer: mmap.mmap, count: int, offset: int) -> None:
        padded = -(-count // _PAGE) * _PAGE
        with memoryview(buffer) as whole, whole[:count] as data, whole[:padded] as page:
            self._digests[offset] = hashlib.sha256(data).hexdigest()
            write_all(self._file, page, offset)


class Reader:
    """Reads parts of a file, and verifies the blocks that they touch.

    Args:
        sha256: of each block; None believes the file, as one that MLX wrote.
        nbytes: how large it has to be; None takes it as it is.
        pool: threads that read and hash blocks; they may be shared with other files.

    Raises:
        DamagedError: where the file is a link, no file, or of another size.
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
        self._file = open_file(path)
        self.nbytes = os.fstat(self._file).st_size
        self._version = _version(self._file)
        self._last: tuple[int, Raw] | None = None
        self._good: set[int] = set()
        if nbytes is not None and self.nbytes != nbytes:
            self.close()
            raise DamagedError(f"{path} has {self.nbytes} bytes, wanted {nbytes}")

    def close(self) -> None:
        os.close(self._file)

    def read(self, offset: int, out: Raw) -> None:
        """Fills `out`, bytes, with what stands at `offset`."""
        end = offset + out.nbytes
        whole = []
        for index in range(offset // self._block, -(-end // self._block)):
            start, stop = self._span(index)
            low, high = max(start, offset), min(stop, end)
            target = out[low - offset : high - offset]
            if (low, high) == (start, stop):
                whole.append((index, target))
            else:
                target[:] = self._block_of(index)[low - start : high - start]
        if self._pool is None:
            for one in whole:
                self._fill(*one)
            return
        for done in [self._pool.submit(self._fill, *one) for one in whole]:
            done.result()

    def check(self, index: int) -> None:
        """Verifies one block, which is believed from then on. Raises DamagedError."""
        start, stop = self._span(index)
        self._fill(index, np.empty(stop - start, np.uint8))
        self._good.add(index)

    def unchanged(self) -> None:
        """Raises DamagedError where the file was written to since it was opened."""
        if _version(self._file) != self._version:
            raise DamagedError(f"{self.path} was changed while it was read")

    def _span(self, index: int) -> tuple[int, int]:
        return index * self._block, min((index + 1) * self._block, self.nbytes)

    def _block_of(self, index: int) -> Raw:
        # Small arrays lie in one block, one behind the other.
        if self._last is None or self._last[0] != index:
            start, stop = self._span(index)
            data = np.empty(stop - start, np.uint8)
            self._fill(index, data)
            self._last = (index, data)
        return self._last[1]

    def _fill(self, index: int, out: Raw) -> None:
        start, _ = self._span(index)
        view, done = out.data, 0
        while done < out.nbytes:
            count = os.preadv(self._file, [view[done:]], start + done)
            if not count:
                raise DamagedError(f"{self.path} ends at byte {start + done}")
            done += count
        if index in self._good or not self._sha256:
            return
        if hashlib.sha256(view).hexdigest() != self._sha256[index]:
            raise DamagedError(
                f"{self.path} is damaged: bytes {start} to {start + out.nbytes} have "
                "another sha256 than when they were written"
            )


def _version(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns


def read_small(path: Path, largest: int) -> bytes:
    """All of a file that is no link and not too large. Raises DamagedError."""
    reader = Reader(path)
    try:
        if reader.nbytes > largest:
            raise DamagedError(f"{path} has {reader.nbytes} bytes, more than {largest}")
        data = np.empty(reader.nbytes, np.uint8)
        reader.read(0, data)
        return data.tobytes()
    finally:
        reader.close()
