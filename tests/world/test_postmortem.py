"""Postmortem: the report on what the ranks of a failed job did last."""

import subprocess
import sys

import pytest

from mlxdist.comm.flight_recorder import RankInfo, Recorder
from mlxdist.world import postmortem
from tests.support.failures import check_failure, postmortem_folder


def write_records(folder, *ranks):
    """Write the record of each rank, given the names of its collectives."""
    for rank, names in enumerate(ranks):
        recorder = Recorder()
        with recorder.call("update", 4):
            for name in names:
                recorder.started(name, 9, "float32", 36)
        recorder.write(folder, RankInfo(rank, len(ranks), "h", 1, ["a line"]))


def test_divergence_of_equal_ranks_is_none(tmp_path):
    write_records(tmp_path, ["agree", "all_sum"], ["agree", "all_sum"])
    text = postmortem.report(tmp_path)
    assert "all ranks started the same collectives" in text
    assert "rank 1 on h: in user code, after step 4, collective 2" in text
    assert "stack of rank 0:\na line" in text


def test_divergence_names_the_first_collective_that_differs(tmp_path):
    write_records(tmp_path, ["agree", "all_sum", "x"], ["agree", "all_gather", "x"])
    assert postmortem.divergence(postmortem.load(tmp_path)) == (
        "the ranks differ at collective 2:\n"
        "  rank 0: all_sum of 9 float32 in update, step 4\n"
        "  rank 1: all_gather of 9 float32 in update, step 4"
    )


def test_divergence_names_ranks_that_fell_behind(tmp_path):
    write_records(tmp_path, ["agree", "all_sum"], ["agree"], ["agree"])
    assert postmortem.divergence(postmortem.load(tmp_path)) == (
        "ranks 1, 2 did not reach collective 2, which the others started: "
        "all_sum of 9 float32 in update, step 4"
    )


def test_divergence_ignores_what_one_rank_no_longer_has(tmp_path):
    names = [f"collective {number}" for number in range(600)]  # 512 are kept
    write_records(tmp_path, names, names[:-1])
    assert "rank 1 did not reach collective 600" in postmortem.report(tmp_path)


@pytest.mark.parametrize("text", ["{}", "", "none", '{"rank": "x"}'])
def test_load_rejects_other_files(text, tmp_path):
    write_records(tmp_path, ["agree"])
    (tmp_path / "rank-1.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"rank-1\.jsonl is not a rank's record"):
        postmortem.load(tmp_path)


def test_report_names_a_killed_rank(tmp_path):
    """mpirun ends the others with SIGTERM, while they are inside MPI."""
    err, _ = check_failure(tmp_path, "SIGKILL", "forward", ranks=3, failing_rank=1)
    records = postmortem_folder(tmp_path)
    names = sorted(path.name for path in records.iterdir())
    assert names == ["rank-0.jsonl", "rank-2.jsonl"], err
    assert "rank 1 wrote nothing: it was killed" in postmortem.report(records)


def test_doctor_postmortem_shows_where_a_hanging_rank_was(tmp_path):
    check_failure(tmp_path, "sleep", "exchange", ranks=2, failing_rank=1)
    command = [sys.executable, "-m", "mlxdist.cli", "doctor", "--postmortem"]
    report = subprocess.run(
        [*command, str(postmortem_folder(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "in optimizer 1.update, gradient exchange, step 4" in report
    assert "stack of rank 1:" in report
    assert "fail_first" in report
