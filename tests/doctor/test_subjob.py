"""doctor/subjob: the results of a job, from the launcher's report and its output."""

import json
import subprocess
from pathlib import Path

import pytest

from mlxdist.doctor import subjob, survey
from mlxdist.launcher import probe


@pytest.fixture
def launcher_ends(monkeypatch):
    """Stand in for `mlxdist run`: an exit code, its output and its report."""

    def end_with(code, *, out="", err="", outcome=None):
        def run(words, **_options):
            if outcome is not None:
                path = Path(words[words.index("--report") + 1])
                path.write_text(json.dumps(outcome))
            return subprocess.CompletedProcess(words, code, out, err)

        monkeypatch.setattr(subprocess, "run", run)

    return end_with


def test_run_takes_message_and_killed_ranks_from_the_launcher_s_report(launcher_ends):
    ranks = [{"rank": 0, "state": "ended"}, {"rank": 1, "state": "killed"}]
    outcome = {"message": "rank 1 of 2 did not finish", "ranks": ranks}
    launcher_ends(137, err="----\nnoise\n", outcome=outcome)
    result = subjob.run([], "mlxdist.doctor.link_job", timeout=1)
    assert (result.code, result.killed) == (137, (1,))
    assert result.message == "rank 1 of 2 did not finish"


def test_run_merges_the_reports_of_rank_0(launcher_ends):
    lines = [f'{probe.MARK}{{"started": true}}', "other", f'{probe.MARK}{{"x": 1}}']
    ranks = [{"rank": 0, "state": "finished"}]
    launcher_ends(0, out="\n".join(lines), outcome={"message": "", "ranks": ranks})
    result = subjob.run([], "mlxdist.doctor.link_job", timeout=1)
    assert (result.code, result.killed) == (0, ())
    assert result.report == {"started": True, "x": 1}


@pytest.mark.parametrize(
    ("err", "message"),
    [
        ("\0\0 mlxdist: error: no Open MPI\n----\n", "mlxdist: error: no Open MPI"),
        ("one\ntwo\n \n-----\n", "two"),
        ("", "exit code 3"),
    ],
)
def test_run_without_a_launcher_s_report_has_the_last_line(err, message, launcher_ends):
    launcher_ends(3, out=f"x\n{probe.MARK}{{}}\n", err=err)
    result = subjob.run([], "mlxdist.doctor.link_job", timeout=1)
    assert (result.code, result.message) == (3, message)
    command = "mlxdist run --iface eth0 -n 2 -m mlxdist.doctor.link_job"
    report = survey.measure_links([], ["--iface", "eth0"])
    assert report == {"error": message, "command": command}
