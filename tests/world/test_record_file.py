"""The file of a rank's record, where other users can plant files too."""

import os
import stat

import pytest

from mlxdist.comm.flight_recorder import RankInfo, Recorder
from mlxdist.world.record_file import write_record
from tests.support.other_user import NEEDS_ROOT

STRANGER = 54321  # a user's number
INFO = RankInfo(3, 4, "h", 1, ["a line"])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The folder for records that can't go to the working folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp" / f"mlxdist-{os.geteuid()}" / "mlxdist-postmortem" / "job"


def test_record_is_in_the_jobs_folder_for_its_owner_alone(tmp_path):
    folder = tmp_path / "mlxdist-postmortem" / "job"
    assert write_record(Recorder(), folder, INFO) == folder
    (path,) = folder.iterdir()
    assert path.name == "rank-3.jsonl"
    modes = [stat.S_IMODE(x.stat().st_mode) for x in (folder.parent, folder, path)]
    assert modes == [0o700, 0o700, 0o600]


def test_records_of_a_host_share_a_folder(tmp_path):
    for rank in range(3):
        info = RankInfo(rank, 3, "h", 1, [])
        write_record(Recorder(), tmp_path / "new" / "job", info)
    names = sorted(path.name for path in (tmp_path / "new" / "job").iterdir())
    assert names == ["rank-0.jsonl", "rank-1.jsonl", "rank-2.jsonl"]


def test_link_of_the_user_to_a_folder_of_records_is_followed(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "mlxdist-postmortem").symlink_to("scratch")
    folder = tmp_path / "mlxdist-postmortem" / "job"
    assert write_record(Recorder(), folder, INFO) == folder
    assert (tmp_path / "scratch" / "job" / "rank-3.jsonl").exists()


@NEEDS_ROOT
def test_folder_that_another_user_made_first_gets_no_record(tmp_path, elsewhere):
    theirs = tmp_path / "mlxdist-postmortem"
    theirs.mkdir()
    theirs.chmod(0o777)
    os.chown(theirs, STRANGER, -1)
    assert write_record(Recorder(), theirs / "job", INFO) == elsewhere
    assert not list(theirs.iterdir())
    assert (elsewhere / "rank-3.jsonl").exists()


@NEEDS_ROOT
def test_link_that_another_user_planted_is_not_followed(tmp_path, elsewhere):
    ours = tmp_path / "ours" / "job"
    ours.mkdir(parents=True)
    (ours / "rank-3.jsonl").write_text("precious")
    link = tmp_path / "mlxdist-postmortem"
    link.symlink_to("ours")
    os.chown(link, STRANGER, -1, follow_symlinks=False)
    assert write_record(Recorder(), link / "job", INFO) == elsewhere
    assert (ours / "rank-3.jsonl").read_text() == "precious"


def test_planted_link_in_the_place_of_the_jobs_folder_is_not_followed(
    tmp_path, elsewhere
):
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "rank-3.jsonl").write_text("precious")
    folder = tmp_path / "mlxdist-postmortem"
    folder.mkdir()
    (folder / "job").symlink_to(ours)
    assert write_record(Recorder(), folder / "job", INFO) == elsewhere
    assert (ours / "rank-3.jsonl").read_text() == "precious"


def test_planted_link_in_the_place_of_the_record_is_replaced(tmp_path):
    (tmp_path / "victim").write_text("precious")
    folder = tmp_path / "mlxdist-postmortem" / "job"
    folder.mkdir(parents=True)
    (folder / "rank-3.jsonl").symlink_to(tmp_path / "victim")
    assert write_record(Recorder(), folder, INFO) == folder
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (folder / "rank-3.jsonl").is_symlink()
