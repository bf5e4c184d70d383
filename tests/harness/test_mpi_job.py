"""The real jobs of the serial tests: see jobs.py."""

import os
import subprocess
import time

import pytest

from tests.support import jobs


def test_jobs_end_at_their_timeout_with_all_they_started(tmp_path):
    source = "import os, time; print(os.getsid(0), flush=True); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        jobs.mpi_job(2, source, folder=tmp_path, timeout=2)
    assert time.monotonic() - begun < 40
    sessions = {int(line) for line in caught.value.output.split()}
    assert len(sessions) == 1
    assert jobs.processes(sessions.pop()) == []


def test_jobs_start_from_inside_a_job(mpi_job):
    ran = mpi_job(
        2,
        "import os, sys; print(os.environ['OMPI_COMM_WORLD_SIZE'], sys.argv[1])",
        "given",
        env={"OMPI_COMM_WORLD_SIZE": "7", "PATH": os.environ["PATH"]},
    )
    assert ran.returncode == 0
    assert ran.stdout.split() == ["2", "given", "2", "given"]
