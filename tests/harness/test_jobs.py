"""Jobs of the tests: support/jobs.py."""

import os
import subprocess

import pytest

from tests.support import jobs


def test_mpi_job_timeout_kills_all_processes_of_the_job(tmp_path):
    source = "import os, time; print(os.getsid(0), flush=True); time.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        jobs.mpi_job(2, source, folder=tmp_path, timeout=2)
    sessions = {int(line) for line in caught.value.output.split()}
    assert len(sessions) == 1
    assert jobs.processes(sessions.pop()) == []


def test_mpi_job_from_inside_a_job_is_a_job_of_its_own(mpi_job):
    result = mpi_job(
        2,
        "import os, sys; print(os.environ['OMPI_COMM_WORLD_SIZE'], sys.argv[1])",
        "given",
        env={"OMPI_COMM_WORLD_SIZE": "7", "PATH": os.environ["PATH"]},
    )
    assert result.returncode == 0
    assert result.stdout.split() == ["2", "given", "2", "given"]
