"""Durable files: written whole or not at all, and opened without trust."""

import fcntl
import os

import pytest

from mlxdist.checkpoint import durable
from mlxdist.checkpoint.block_file import BLOCK, Reader, Writer, read_small
from mlxdist.checkpoint.durable import DamagedError
from tests.support.checkpoints import random_bytes, write_blocks


def test_write_all_falls_back_where_direct_writes_fail(tmp_path, monkeypatch):
    pwrite, direct = os.pwrite, getattr(os, "O_DIRECT", 0)

    def pwrite_without_direct(file, data, offset):
        if direct and fcntl.fcntl(file, fcntl.F_GETFL) & direct:
            raise OSError(22, "Invalid argument")
        return pwrite(file, data[:100_001], offset)  # a short write

    monkeypatch.setattr(os, "pwrite", pwrite_without_direct)
    data = random_bytes(BLOCK + 5)
    write_blocks(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == data.tobytes()
    monkeypatch.undo()
    control = fcntl.fcntl

    def refuse_direct(file, command, argument=0):
        if command == fcntl.F_SETFL and argument & direct:
            raise OSError(22, "Invalid argument")
        return control(file, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse_direct)
    write_blocks(tmp_path / "y", data)
    assert (tmp_path / "y").read_bytes() == data.tobytes()


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_create_refuses_what_exists_and_leaves_it(kind, tmp_path):
    path, target = tmp_path / "x", tmp_path / "target"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(target)
    else:
        target.write_bytes(b"mine")
        (path.hardlink_to if kind == "file" else path.symlink_to)(target)
    listing = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FileExistsError):
        durable.create(path)
    with pytest.raises(FileExistsError):
        Writer(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == listing
    if kind in ("file", "link"):
        assert path.read_bytes() == b"mine"


@pytest.mark.timeout(60)  # it waits for ever where a pipe has no writer
def test_open_file_refuses_links_fifos_and_folders(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("link", "is a link"),
        ("fifo", "not a file"),
        (".", "not a"),
    ):
        with pytest.raises(DamagedError, match=message):
            Reader(tmp_path / name)
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(DamagedError, match="more than 99"):
        read_small(tmp_path / "large", 99)


def test_write_atomically_replaces_a_file(tmp_path):
    durable.write_atomically(tmp_path / "x", b"one")
    durable.write_atomically(tmp_path / "x", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"two"


def test_write_atomically_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def fail(file):
        raise KeyboardInterrupt

    durable.write_atomically(tmp_path / "x", b"one")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        durable.write_atomically(tmp_path / "x", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"one"
