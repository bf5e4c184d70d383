"""The folder of MLX's compiled kernels."""

import os
import stat
from pathlib import Path

import pytest

from mlxdist.launcher import environment, kernel_folder
from tests.support.other_user import NEEDS_ROOT

STRANGER = 54321  # a user's number


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """This process's folder for temporary files. As in /tmp, all can write to it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def plant(path, owner=STRANGER):
    """Make a library at a path, and the folders above it, of another user."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a library")
    os.chown(path, owner, -1)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_is_made_for_this_user_alone(temporary):
    assert kernel_folder.protect() == ""
    assert mode(temporary / "mlx") == 0o700
    assert environment.native_temporary_folder() == str(temporary)


def test_folder_of_earlier_jobs_is_closed_to_others_and_kept(temporary):
    library = temporary / "mlx" / "0.32.4" / "cpu" / "libx.so"
    plant(library, owner=os.geteuid())
    (temporary / "mlx").chmod(0o755)
    assert kernel_folder.protect() == ""
    assert mode(temporary / "mlx") == 0o700
    assert library.exists()


def test_files_that_all_could_change_are_fine_where_others_had_no_way_in(temporary):
    library = temporary / "mlx" / "0.32.4" / "libx.so"
    plant(library, owner=os.geteuid())
    library.chmod(0o777)
    (temporary / "mlx").chmod(0o700)
    assert kernel_folder.protect() == ""


def check_moved(temporary, reason):
    """Check that MLX got a folder of this user's, and Python kept its own."""
    warning = kernel_folder.protect()
    folder = temporary / f"mlxdist-{os.geteuid()}"
    expected = f"MLX compiles kernels into {folder}/mlx, because {reason}"
    assert warning.replace(str(temporary) + "/mlx/", "mlx/") == expected
    assert environment.native_temporary_folder() == str(folder)
    assert os.environ["TMPDIR"] == str(temporary)
    assert mode(folder) == mode(folder / "mlx") == 0o700
    assert kernel_folder.protect() == ""  # again, as in `init` after `mlxdist run`


def test_folder_open_to_others_is_not_used(temporary):
    (temporary / "mlx").mkdir()
    (temporary / "mlx").chmod(0o777)
    check_moved(temporary, f"other users may write to {temporary}/mlx")


def test_library_that_others_could_change_is_not_used(temporary):
    plant(temporary / "mlx" / "libx.so", owner=os.geteuid())
    (temporary / "mlx" / "libx.so").chmod(0o777)
    (temporary / "mlx").chmod(0o755)
    check_moved(temporary, "other users may write to mlx/libx.so")


def test_link_among_the_libraries_is_not_used(temporary):
    (temporary / "mlx").mkdir()
    (temporary / "mlx" / "libx.so").symlink_to("/usr/lib/libc.so")
    check_moved(temporary, "mlx/libx.so is a link")


@NEEDS_ROOT
def test_folder_of_another_user_is_not_used(temporary):
    (temporary / "mlx").mkdir()
    os.chown(temporary / "mlx", STRANGER, -1)
    check_moved(temporary, f"{temporary}/mlx belongs to user {STRANGER}")


@NEEDS_ROOT
def test_library_of_another_user_deep_in_the_folder_is_not_used(temporary):
    plant(temporary / "mlx" / "0.32.4" / "cpu" / "libx.so")
    reason = f"mlx/0.32.4/cpu/libx.so belongs to user {STRANGER}"
    check_moved(temporary, reason)


@NEEDS_ROOT
def test_link_of_another_user_to_a_folder_of_ours_is_not_used(temporary):
    (temporary / "ours").mkdir(mode=0o700)
    (temporary / "mlx").symlink_to("ours")
    os.chown(temporary / "mlx", STRANGER, -1, follow_symlinks=False)
    check_moved(temporary, f"{temporary}/mlx belongs to user {STRANGER}")


def test_temporary_folder_that_others_can_rename_things_in_is_not_used(temporary):
    temporary.chmod(0o777)
    warning = kernel_folder.protect()
    assert f"because other users may write to {temporary}" in warning
    assert Path(environment.native_temporary_folder()).parent != temporary


@pytest.mark.parametrize("value", ["{}/missing", "relative", ""])
def test_temporary_folder_that_is_none_is_not_left_to_others(
    value, temporary, monkeypatch
):
    monkeypatch.setenv("TMPDIR", value.format(temporary))
    assert "the folder for temporary files, is none" in kernel_folder.protect()
    assert os.path.isdir(environment.native_temporary_folder())


@NEEDS_ROOT
def test_no_folder_of_this_user_is_an_error_with_the_remedy(temporary, monkeypatch):
    for name in ("mlx", "mlxdist-0", "home"):
        (temporary / name).mkdir()
        os.chown(temporary / name, STRANGER, -1)
    monkeypatch.setenv("HOME", str(temporary / "home"))
    monkeypatch.setattr(os, "geteuid", lambda: 7)  # a user who owns nothing here
    with pytest.raises(PermissionError, match="set TMPDIR to one to which no other"):
        kernel_folder.protect()
    assert environment.native_temporary_folder() == str(temporary)
