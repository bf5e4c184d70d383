"""Files and folders that other users can't read, replace or plant."""

import os
import stat
import struct
from pathlib import Path

import pytest

from mlxdist.launcher import private_files
from tests.support.other_user import NEEDS_ROOT

STRANGER = 54321  # a user's number


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def victim(tmp_path):
    """A file of this user's that must not change."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_and_folders_are_for_their_owner_whatever_the_umask(umask, tmp_path):
    old = os.umask(umask)
    try:
        private_files.write_private(tmp_path / "a" / "b" / "c", "text")
        private_files.write_atomically(tmp_path / "d" / "e", "text")
    finally:
        os.umask(old)
    assert [mode(tmp_path / x) for x in ("a", "a/b", "d")] == 3 * [0o700]
    assert [mode(tmp_path / x) for x in ("a/b/c", "d/e")] == 2 * [0o600]
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["e"]


@pytest.mark.parametrize("write", ["write_private", "write_atomically"])
def test_write_replaces_a_link_and_does_not_follow_it(write, tmp_path, victim):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    (folder / "x").symlink_to(victim)
    (folder / f".x.{os.getpid()}").symlink_to(victim)  # an earlier temporary name
    getattr(private_files, write)(folder / "x", "text")
    assert not (folder / "x").is_symlink()
    assert (folder / "x").read_text() == "text"
    assert victim.read_text() == "precious"


def test_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    private_files.write_atomically(tmp_path / "x", "old")

    def fail(*_, **__):
        raise OSError(28, "full", ".x.0123", None, "x")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=rf"full: '{tmp_path}/x'$"):
        private_files.write_atomically(tmp_path / "x", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("bits", [0o707, 0o777, 0o703])
def test_write_private_refuses_a_folder_that_others_can_write_to(bits, tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(PermissionError, match="other users may write to it"):
        private_files.write_private(folder / "x", "text")
    assert not list(folder.iterdir())


def test_write_private_refuses_a_link_to_a_folder(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError, match="link"):
        private_files.write_private(tmp_path / "link" / "x", "text")
    assert not list(target.iterdir())


@NEEDS_ROOT
def test_write_private_refuses_a_folder_of_another_user(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", STRANGER, -1)
    with pytest.raises(PermissionError, match=f"belongs to user {STRANGER}"):
        private_files.write_private(tmp_path / "theirs" / "x", "text")
    assert not list((tmp_path / "theirs").iterdir())


@NEEDS_ROOT
def test_problem_finds_who_can_put_something_in_a_folders_place(tmp_path):
    def problem_of(name, bits=0o700, owner=None, above=0o700):
        """Return the problem of a folder's folder."""
        folder = tmp_path / name
        (folder / "inner").mkdir(parents=True)
        (folder / "inner").chmod(bits)
        folder.chmod(above)
        if owner is not None:
            os.chown(folder, owner, -1)
        return private_files.problem(folder / "inner")

    assert problem_of("a") == ""
    assert problem_of("b", above=0o1777) == ""  # as /tmp
    assert problem_of("c", above=0o755) == ""
    assert problem_of("d", above=0o777) == f"other users may write to {tmp_path}/d"
    assert problem_of("e", bits=0o1777).endswith("to " + str(tmp_path / "e" / "inner"))
    assert problem_of("f", owner=STRANGER).endswith(f"f belongs to user {STRANGER}")
    (tmp_path / "link").symlink_to("a/../a/inner")
    assert private_files.problem(tmp_path / "link") == ""
    os.chown(tmp_path / "link", STRANGER, -1, follow_symlinks=False)
    assert "link belongs to" in private_files.problem(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    assert "too many links" in private_files.problem(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    assert "is no folder" in private_files.problem(tmp_path / "file")


@NEEDS_ROOT
def test_group_may_write_only_where_it_is_the_owners_own(tmp_path):
    """root's group has no other member; that of the stranger is unknown."""
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o770)
    assert private_files.problem(folder) == ""
    os.chown(folder, -1, STRANGER)
    assert private_files.problem(folder) == f"other users may write to {folder}"


def access_list(user):
    """Return the bytes of a list by which a user may write, as `setfacl` makes it."""
    entries = [(1, 7, -1), (2, 7, user), (4, 7, -1), (16, 7, -1), (32, 0, -1)]
    return struct.pack("<i", 2) + b"".join(struct.pack("<hhi", *x) for x in entries)


@NEEDS_ROOT
def test_problem_finds_a_user_whom_an_access_list_names(tmp_path):
    """Its rights show as those of the group, which is root's own."""
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    folder.chmod(0o770)
    try:
        os.setxattr(folder, "system.posix_acl_access", access_list(STRANGER))
    except OSError as error:
        pytest.skip(f"no access lists: {error}")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o770
    problem = f"other users may write to {folder}"
    assert private_files.problem(folder / "inner") == problem
    with pytest.raises(PermissionError, match="other users may write"):
        private_files.write_private(folder / "x", "text")


@NEEDS_ROOT
def test_user_folder_is_another_one_where_the_name_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    first = tmp_path / "mlxdist-0"
    assert private_files.user_folder() == first
    assert mode(first) == 0o700
    os.chown(first, STRANGER, -1)
    second = private_files.user_folder()
    assert second != first
    assert private_files.problem(second) == ""


def test_user_folder_works_without_a_home(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("HOME", raising=False)
    assert private_files.user_folder().parent == tmp_path


def test_read_text_refuses_what_is_no_file_at_once(tmp_path, victim):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(victim)
    for name in ("pipe", "link", "none"):
        with pytest.raises(OSError, match=r"is no file|link|No such"):
            private_files.read_text(tmp_path / name)
    with pytest.raises(ValueError, match="more than 3 bytes"):
        private_files.read_text(victim, 3)
    assert private_files.read_text(victim) == "precious"


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_log_replaces_a_link_and_leaves_its_target(plant, append, tmp_path, victim):
    path = tmp_path / "rank-0.log"
    plant(path, victim)
    with os.fdopen(private_files.open_log(path, append=append), "wb") as file:
        file.write(b"text")
    assert (path.read_text(), victim.read_text()) == ("text", "precious")


def test_log_is_appended_to_or_begun_anew(tmp_path):
    path = tmp_path / "rank-0.log"
    for append in (False, True, True, False):
        with os.fdopen(private_files.open_log(path, append=append), "wb") as file:
            file.write(b"x")
        assert path.read_text() in ("x", "xx", "xxx")
    assert path.read_text() == "x"


def test_log_is_never_opened_where_another_process_has_made_one(tmp_path, monkeypatch):
    """One may be planted between the removal of the old one and its creation."""
    (tmp_path / "log").write_text("theirs")
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: None)
    with pytest.raises(FileExistsError):
        private_files.open_log(tmp_path / "log", append=False)
