"""Files in blocks: hashed on their way to the disk, verified on their way back."""

import hashlib
import os
import sys
import threading

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.checkpoint import async_save
from mlxdist.checkpoint import block_file as blocks
from mlxdist.checkpoint import durable as files
from mlxdist.checkpoint import safetensors
from mlxdist.checkpoint.block_file import BLOCK, THREADS, Reader, Writer
from mlxdist.checkpoint.durable import DamagedError
from mlxdist.checkpoint.safetensors import DTYPES, Tensor


def data_of(nbytes):
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)


def written(path, data, parts=3):
    writer = Writer(path)
    for part in np.array_split(data, parts):
        writer.write(part.data)
    digests = writer.finish()
    writer.close()
    return digests


@pytest.mark.parametrize("nbytes", [0, 1, 4096, BLOCK, BLOCK + 1, 9 * BLOCK + 12345])
def test_what_is_written_is_read(nbytes, tmp_path):
    data = data_of(nbytes)
    digests = written(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == data.tobytes()
    assert digests == tuple(
        hashlib.sha256(data[start : start + BLOCK].tobytes()).hexdigest()
        for start in range(0, nbytes, BLOCK)
    )
    reader = Reader(tmp_path / "x", digests, nbytes)
    draw = np.random.default_rng(1)
    for _ in range(9):
        start, stop = sorted(draw.integers(0, nbytes + 1, 2))
        out = np.empty(stop - start, np.uint8)
        reader.read(int(start), out)
        np.testing.assert_array_equal(out, data[start:stop])
    reader.close()


def test_a_flipped_bit_is_seen_where_its_block_is_read(tmp_path):
    data = data_of(3 * BLOCK)
    digests = written(tmp_path / "x", data)
    data[BLOCK + 7] ^= 1
    (tmp_path / "x").write_bytes(data.tobytes())
    reader = Reader(tmp_path / "x", digests, data.nbytes)
    reader.read(0, np.empty(BLOCK, np.uint8))
    reader.read(2 * BLOCK, np.empty(9, np.uint8))
    for offset, count in ((BLOCK, BLOCK), (BLOCK + 9, 1), (BLOCK - 1, 2)):
        with pytest.raises(DamagedError, match=f"bytes {BLOCK} to {2 * BLOCK}"):
            reader.read(offset, np.empty(count, np.uint8))
    reader.close()


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    written(tmp_path / "x", data_of(1000))
    reader = Reader(tmp_path / "x")
    os.truncate(tmp_path / "x", 10)
    with pytest.raises(DamagedError, match="ends at byte 10"):
        reader.read(0, np.empty(100, np.uint8))
    reader.close()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    writer = Writer(tmp_path / "x")
    monkeypatch.setattr(os, "pwrite", full)
    writer.write(data_of(BLOCK).data)
    with pytest.raises(OSError, match="No space left"):
        writer.finish()
    writer.close()


def test_a_system_without_direct_writes(tmp_path, monkeypatch):
    real, direct = os.pwrite, getattr(os, "O_DIRECT", 0)

    def picky(file, data, offset):
        if files._is_direct(file):
            raise OSError(22, "Invalid argument")
        return real(file, data[:100_001], offset)  # and no more at once

    monkeypatch.setattr(os, "pwrite", picky)
    data = data_of(BLOCK + 5)
    written(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == data.tobytes()
    monkeypatch.undo()
    opened = os.open

    def no_direct(path, flags, *mode):
        if direct and flags & direct:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", no_direct)
    written(tmp_path / "y", data)
    assert (tmp_path / "y").read_bytes() == data.tobytes()


def test_links_fifos_and_folders_are_not_opened(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    for name, told in (("link", "is a link"), ("fifo", "not a file"), (".", "not a")):
        with pytest.raises(DamagedError, match=told):
            Reader(tmp_path / name)
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(DamagedError, match="more than 99"):
        blocks.read_small(tmp_path / "large", 99)


def test_small_files_are_replaced_whole(tmp_path):
    files.write_beside(tmp_path / "x", b"one")
    files.write_beside(tmp_path / "x", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"two"


def test_mlx_reads_what_is_written_and_the_other_way(tmp_path):
    arrays = {
        name: mx.ones((3, 2), getattr(mx, "bool_" if name == "bool" else name))
        for name in DTYPES
        if name != "float64"  # which MLX's safetensors files can't hold
    }
    tensors = [Tensor(n, n, (3, 2), a.nbytes) for n, a in arrays.items()]
    writer = Writer(tmp_path / "ours")
    writer.write(safetensors.header(tensors, {"made": "here"}))
    for array in arrays.values():
        writer.write(memoryview(mx.contiguous(array.reshape(-1))).cast("B"))
    writer.finish()
    writer.close()
    found = mx.load(str(tmp_path / "ours"), format="safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array)
    mx.save_safetensors(str(tmp_path / "mlx.safetensors"), arrays)
    for name in ("ours", "mlx.safetensors"):
        reader = Reader(tmp_path / name)
        listed = {
            t.name: (t.dtype, t.shape, t.nbytes) for t in safetensors.tensors_of(reader)
        }
        assert listed == {t.name: (t.dtype, t.shape, t.nbytes) for t in tensors}
        reader.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{",
        *(
            len(text).to_bytes(8, "little") + text + bytes(8)
            for text in (
                b'{"a": 1}',
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}',
                b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
            )
        ),
    ],
)
def test_what_is_no_safetensors_file(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    reader = Reader(tmp_path / "x")
    with pytest.raises(DamagedError, match="is no safetensors file"):
        safetensors.tensors_of(reader)
    reader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads")
def test_a_save_behind_training_takes_what_that_leaves(tmp_path):
    own, found = os.getpriority(os.PRIO_PROCESS, 0), []

    def write():
        async_save.lower_priority()
        writer = Writer(tmp_path / "file")
        writer.write(b"some")
        ids = [threading.get_native_id(), *(t.native_id for t in writer._threads)]
        found.extend(os.getpriority(os.PRIO_PROCESS, one) for one in ids)
        writer.finish()
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert found == [min(own + 10, 19)] * (1 + THREADS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
