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


# The command `mlxdist`, which does not look for modules in the working folder.
MAIN = "import sys; del sys.path[0]; from mlxdist import cli; sys.exit(cli.main())"
# A module that leaves a file when it is imported, as another user could plant it.
PLANTED = """
import os
os.close(os.open(__file__ + ".imported", os.O_CREAT))
raise ImportError("planted")
"""


def test_doctor_on_this_machine_finds_no_failure(tmp_path):
    """Nothing comes from the working folder, to which others may write."""
    for name in ("json", "platform", "shutil", "socket", "argparse", "mlx", "mlxdist"):
        (tmp_path / f"{name}.py").write_text(PLANTED)
    ran = jobs.run([sys.executable, "-c", MAIN, "doctor", "--json"], cwd=tmp_path)
    assert not list(tmp_path.glob("*.imported")), ran.stderr
    output = json.loads(ran.stdout)
    assert ran.returncode == 0, output
    assert output["ok"]
    checks = {finding["check"]: finding["found"] for finding in output["findings"]}
    assert checks["exact sum"] == "on 2 ranks, by MLX and by MPI"
    assert re.search(r"rank 0 - rank 1: \d+ us, [\d,]+ MB/s", checks["link"])
    assert checks["Python"] == f"{sys.version.split()[0]} at {sys.executable}"
