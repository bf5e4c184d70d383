"""Files in blocks: hashed when written, verified when read."""

import hashlib
import os

import numpy as np
import pytest

from mlxdist.checkpoint.block_file import BLOCK, Reader, Writer, check_blocks
from mlxdist.checkpoint.durable import DamagedError
from tests.support.checkpoints import random_bytes, write_blocks


@pytest.mark.parametrize("nbytes", [0, 1, 4096, BLOCK, BLOCK + 1, 9 * BLOCK + 12345])
def test_reader_reads_what_writer_wrote(nbytes, tmp_path):
    data = random_bytes(nbytes)
    digests = write_blocks(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == data.tobytes()
    assert digests == tuple(
        hashlib.sha256(data[start : start + BLOCK].tobytes()).hexdigest()
        for start in range(0, nbytes, BLOCK)
    )
    with Reader(tmp_path / "x", digests, nbytes) as reader:
        draw = np.random.default_rng(1)
        for _ in range(9):
            start, stop = sorted(draw.integers(0, nbytes + 1, 2))
            out = np.empty(stop - start, np.uint8)
            reader.read(int(start), out)
            np.testing.assert_array_equal(out, data[start:stop])


def test_reader_finds_a_flipped_bit_in_the_blocks_it_reads(tmp_path):
    data = random_bytes(3 * BLOCK)
    digests = write_blocks(tmp_path / "x", data)
    data[BLOCK + 7] ^= 1
    (tmp_path / "x").write_bytes(data.tobytes())
    with Reader(tmp_path / "x", digests, data.nbytes) as reader:
        reader.read(0, np.empty(BLOCK, np.uint8))
        reader.read(2 * BLOCK, np.empty(9, np.uint8))
        for offset, count in ((BLOCK, BLOCK), (BLOCK + 9, 1), (BLOCK - 1, 2)):
            with pytest.raises(DamagedError, match=f"bytes {BLOCK} to {2 * BLOCK}"):
                reader.read(offset, np.empty(count, np.uint8))


def test_reader_finds_blocks_that_are_swapped(tmp_path):
    data = random_bytes(2 * BLOCK)
    digests = write_blocks(tmp_path / "x", data)
    (tmp_path / "x").write_bytes(np.roll(data, BLOCK).tobytes())
    with (
        Reader(tmp_path / "x", digests, data.nbytes) as reader,
        pytest.raises(DamagedError, match=f"bytes 0 to {BLOCK}"),
    ):
        reader.read(0, np.empty(BLOCK, np.uint8))


class SerialPool:
    """Threads that do nothing, but for how much they were given at a time."""

    def __init__(self):
        self.queued = []

    def map(self, function, items):
        self.queued.append(len(items))
        return map(function, items)


def test_many_blocks_are_verified_a_few_at_a_time(tmp_path):
    """A file of 3 GB in blocks of 4 KiB took 1.5 GB of memory."""
    data = random_bytes(2500)
    (tmp_path / "x").write_bytes(data.tobytes())
    digests = [hashlib.sha256(bytes([byte])).hexdigest() for byte in data]
    pool = SerialPool()
    with Reader(tmp_path / "x", digests, 2500, block=1) as reader:
        assert [*check_blocks(reader, range(2500), pool)] == [*range(2500)]
        assert [*check_blocks(reader, [], pool)] == []
    assert pool.queued == [1000, 1000, 500, 0]
    digests[2000] = digests[2000][::-1]
    with (
        Reader(tmp_path / "x", digests, 2500, block=1) as reader,
        pytest.raises(DamagedError, match="bytes 2000 to 2001"),
    ):
        [*check_blocks(reader, range(2500), pool)]


def test_reader_finds_a_file_that_is_written_to_while_it_reads(tmp_path):
    data = random_bytes(1000)
    digests = write_blocks(tmp_path / "x", data)
    with Reader(tmp_path / "x", digests, data.nbytes) as reader:
        reader.read(0, np.empty(1000, np.uint8))
        reader.check_unchanged()
        with (tmp_path / "x").open("r+b") as file:  # of the same size
            file.write(b"other")
        with pytest.raises(DamagedError, match="modified while it was read"):
            reader.check_unchanged()


def test_reader_finds_a_file_that_shrinks(tmp_path):
    write_blocks(tmp_path / "x", random_bytes(1000))
    with Reader(tmp_path / "x") as reader:
        os.truncate(tmp_path / "x", 10)
        with pytest.raises(DamagedError, match="ends at byte 10"):
            reader.read(0, np.empty(100, np.uint8))


def test_writer_raises_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with Writer(tmp_path / "x") as writer:
        writer.write(random_bytes(BLOCK).data)
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
