"""The lock on a folder of checkpoints: one job at a time, whatever became of others."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint.durable import DamagedError
from mlxdist.checkpoint.lock import NAME, FolderLock, InUseError
from tests.support.checkpoints import assert_all_raise, make_run

# Without mlxdist, which takes seconds to import.
HOLDER = """
import fcntl, os, socket, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
os.write(file, f"{os.getpid()} {socket.gethostname()}\\n".encode())
if not os.fork():  # a child that outlives the process
    os.close(0), os.close(1)
    time.sleep(3)
    os._exit(0)
print("locked", flush=True)
sys.stdin.read()
"""


def start_holder(folder):
    """Start a process that holds the lock until it is ended."""
    command = [sys.executable, "-S", "-c", HOLDER, str(folder / NAME)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen(command, text=True, **pipes)
    assert holder.stdout.readline() == "locked\n"
    return holder


def end(holder):
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()


def test_lock_names_the_process_that_holds_it_and_ends_with_it(tmp_path):
    """Even if a child that it forked lives on."""
    holder = start_holder(tmp_path)
    try:
        where = f"process {holder.pid} on {socket.gethostname()} saves into it"
        with pytest.raises(InUseError, match=where):
            FolderLock(tmp_path)
        with pytest.raises(InUseError, match=where):
            FolderLock(tmp_path)  # the first attempt did not end the lock
    finally:
        end(holder)
    assert os.listdir(tmp_path) == [NAME]
    lock = FolderLock(tmp_path)
    with pytest.raises(InUseError, match="another save of this process"):
        FolderLock(tmp_path)
    lock.close()
    lock.close()
    assert os.listdir(tmp_path) == []


def test_lock_is_shared_with_nobody(tmp_path):
    lock = FolderLock(tmp_path)
    share = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), 5)"  # SH | NB
    command = [sys.executable, "-S", "-c", share, str(tmp_path / NAME)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
    lock.close()


@pytest.mark.parametrize("content", [b"", b"\x1b[2J 1 x", b"1 " + b"x" * 10**6])
def test_lock_does_not_quote_what_no_lock_has_written(content, tmp_path, monkeypatch):
    def held(file, flags):
        raise OSError(errno.EAGAIN, "held")

    (tmp_path / NAME).write_bytes(content)
    monkeypatch.setattr(fcntl, "lockf", held)
    with pytest.raises(InUseError, match="another job saves into it"):
        FolderLock(tmp_path)


def test_lock_whose_file_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    lockf, removals = fcntl.lockf, []

    def lock_late(file, flags):
        if not removals:
            removals.append((tmp_path / NAME).unlink())
        lockf(file, flags)

    monkeypatch.setattr(fcntl, "lockf", lock_late)
    lock = FolderLock(tmp_path)
    assert os.path.samestat(os.stat(tmp_path / NAME), os.fstat(lock._file))
    lock.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks_locks_nothing(number, tmp_path, monkeypatch):
    def refuse(file, flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    FolderLock(tmp_path).close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_lock_refuses_what_is_no_file(kind, tmp_path):
    path, target = tmp_path / NAME, tmp_path / "target"
    target.write_bytes(b"mine")
    {"link": lambda: path.symlink_to(target), "fifo": lambda: os.mkfifo(path)}.get(
        kind, path.mkdir
    )()
    with pytest.raises((OSError, DamagedError)):
        FolderLock(tmp_path)
    assert target.read_bytes() == b"mine"


@pytest.mark.mpi
def test_save_into_the_folder_of_another_job_is_refused_on_all_ranks(
    world, shared_folder
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)
    world.barrier()
    holder = start_holder(shared_folder) if world.is_root else None
    world.barrier()
    before = sorted(os.listdir(shared_folder))
    world.barrier()
    for background in (False, True):
        assert_all_raise(
            world,
            CheckpointError,
            rf"(?s)nothing was saved in.*process \d+ on {socket.gethostname()}",
            lambda background=background: save_checkpoint(
                shared_folder, 2, params, optimizer, background=background
            ),
        )
    assert load_checkpoint(shared_folder, params, optimizer).step == 1  # reads it
    assert sorted(os.listdir(shared_folder)) == before
    world.barrier()
    if holder is not None:
        end(holder)
    world.barrier()
    save_checkpoint(shared_folder, 2, params, optimizer)  # a restart after a kill
    assert NAME not in os.listdir(shared_folder)
    assert load_checkpoint(shared_folder, params, optimizer).step == 2
