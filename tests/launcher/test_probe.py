"""The probe, as it is sent to hosts."""

import json
import subprocess
import sys

from mlxdist.launcher import interfaces, probe


def test_source_runs_on_a_python_without_mlxdist(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-", "host.invalid"],
        input=probe.source(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        timeout=100,
    )
    line = done.stdout.splitlines()[-1]
    report = json.loads(line.removeprefix(probe.MARK))
    assert report["executable"] == sys.executable
    assert set(report["packages"]) == {*probe.PACKAGES, *probe.CUDA_BACKENDS}
    assert not report["peers"]["host.invalid"]["resolved"]
    assert isinstance(interfaces.parse(report["network"]), list)
