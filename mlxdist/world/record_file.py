"""The file of a rank's record, in a folder that belongs to this user."""

from __future__ import annotations

import os
from pathlib import Path

from ..comm.flight_recorder import RankInfo, Recorder
from ..launcher import private_files


def write_record(recorder: Recorder, folder: Path, info: RankInfo) -> Path:
    """Write `rank-<r>.jsonl` with mode 600 to a job's folder, which is made.

    In a working folder that several users share, another one may have made
    `mlxdist-postmortem` first, or a link of that name. Then the record goes to
    `mlxdist-postmortem` in a folder of this user's: `private_files.user_folder`.

    Returns:
        The job's folder that has the record.

    Raises:
        OSError: it can't be written.
    """
    name, text = f"rank-{info.rank}.jsonl", recorder.text(info)
    try:
        _check_owner(folder.parent)
        private_files.write_private(folder / name, text)
    except OSError:
        usual = folder
        folder = private_files.user_folder() / "mlxdist-postmortem" / usual.name
        private_files.write_private(folder / name, text)
    return folder


def _check_owner(folder: Path) -> None:
    """Refuse a folder, or a link to one, that another user has made.

    Raises:
        PermissionError: it is another user's.
    """
    if not os.path.lexists(folder):
        return
    for info in (os.lstat(folder), os.stat(folder)):
        if info.st_uid not in (0, os.geteuid()):
            owner = private_files.user_name(info.st_uid)
            raise PermissionError(f"{folder} belongs to {owner}")
