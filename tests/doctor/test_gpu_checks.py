"""The check of a host's NVIDIA GPUs."""

import pytest

from mlxdist.doctor import diagnose
from mlxdist.launcher.hosts import Host, HostList
from tests.support.machines import LINUX, PYTHON, answer


@pytest.mark.parametrize(
    ("gpus", "visible", "slots", "level", "message"),
    [
        (0, None, 4, None, ""),
        (1, None, 1, None, ""),
        (2, None, 2, "ok", "2 GPUs; mlxdist run gives each rank one"),
        (8, "3,1", 2, "ok", "8 GPUs, CUDA_VISIBLE_DEVICES is '3,1'; mlxdist run"),
        (1, None, 2, "warning", "1 GPU: 2 ranks share 1"),
        (2, "0", 2, "warning", "2 GPUs, CUDA_VISIBLE_DEVICES is '0': 2 ranks share 1"),
        (2, "", 1, "warning", "is '', which hides all"),
    ],
)
def test_check_gpus_expects_one_for_each_rank(gpus, visible, slots, level, message):
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    asked = answer("box", system=LINUX, gpus=gpus, variables=variables, mac={})
    named = HostList((Host("box", slots),))
    findings = [f for f in diagnose([asked], PYTHON, None, named) if f.check == "GPUs"]
    assert [finding.level for finding in findings] == ([level] if level else [])
    assert all(message in finding.message for finding in findings)
    assert all(bool(f.remedy) == (f.level == "warning") for f in findings)
