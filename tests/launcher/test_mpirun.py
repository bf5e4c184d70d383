"""mpirun as a child process: what ends it."""

import os
import subprocess
import time

import pytest

from mlxdist.launcher import marks, mpirun
from mlxdist.launcher.output import Output
from mlxdist.launcher.signals import Signals


@pytest.mark.parametrize("dead", [1, 2])
def test_mpirun_that_outlives_its_ranks_is_killed(dead, tmp_path, monkeypatch):
    """Open MPI 5's may hang where a rank fails while another one starts MPI."""
    monkeypatch.setattr(mpirun, "GONE_TIMEOUT", 0.2)
    with subprocess.Popen(["true"]) as ended:
        pass
    pids = [ended.pid] * dead + [os.getpid()] * (2 - dead)
    for rank, pid in enumerate(pids):
        marks.pid_file(str(tmp_path), rank).write_text(str(pid))
    marks.mark_file(str(tmp_path), "failed", 0).write_text("KeyError")
    output = Output(run_dir=str(tmp_path), ranks=2, token="", label=False, logs={})
    start = time.monotonic()
    with Signals() as signals:
        process = mpirun.Mpirun(
            ["sleep", "1"],
            dict(os.environ),
            run_dir=str(tmp_path),
            ranks=2,
            output=output,
            signals=signals,
        )
        code = process.wait()
    is_killed = time.monotonic() - start < 0.9
    assert (code, is_killed) == ((1, True) if dead == 2 else (0, False))
