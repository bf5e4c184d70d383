"""cli/doctor: the table and the JSON of `mlxdist doctor`."""

import json
import re
import sys

from mlxdist.cli import doctor
from mlxdist.doctor import diagnose
from tests.support import jobs
from tests.support.machines import PYTHON, answer

DOCTOR = [sys.executable, "-m", "mlxdist.cli", "doctor"]


def test_merge_rows_joins_hosts_with_equal_findings():
    changes = [{}, {}, {"packages__mlx": "0.1"}]
    answers = [answer(f"mac{i}", **x) for i, x in enumerate(changes, 1)]
    merged = doctor.merge_rows(list(diagnose(answers, PYTHON)))
    rows = [(row.check, row.host, row.level) for row in merged]
    assert ("Python", "all", "ok") in rows
    assert ("mlx", "mac1, mac2", "ok") in rows
    assert ("mlx", "mac3", "failure") in rows


def test_doctor_on_this_machine_finds_no_failure(tmp_path):
    ran = jobs.run([*DOCTOR, "--json"], cwd=tmp_path)
    output = json.loads(ran.stdout)
    assert ran.returncode == 0, output
    assert output["ok"]
    checks = {finding["check"]: finding["found"] for finding in output["findings"]}
    assert checks["exact sum"] == "on 2 ranks, by MLX and by MPI"
    assert re.search(r"rank 0 - rank 1: \d+ us, [\d,]+ MB/s", checks["link"])
    assert checks["Python"] == f"{sys.version.split()[0]} at {sys.executable}"
