"""Accelerators: the main job on one, where there is one, and what it must not meet."""

import ast
import json
import math
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from tests.support import jobs

LAUNCH = jobs.ROOT / "launch"
RUN = [sys.executable, "-m", "mlxdist.cli", "run"]

# Runs the main job on a device: cpu, gpu, or the CPU while MLX says it is a GPU.
ON = f"""
import runpy, sys
import mlx.core as mx
device = sys.argv.pop(1)
if device == "cpu":
    mx.set_default_device(mx.cpu)
if device == "pretended":
    mx.default_device = lambda: mx.gpu
assert (mx.default_device() == mx.cpu) == (device == "cpu")
sys.path.insert(0, {str(LAUNCH)!r})
sys.argv[0] = {str(LAUNCH / "train_lm.py")!r}
import model
model.generate = lambda *_, **__: ""  # a sample, byte by byte: as long as all the rest
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def losses_on(device, folder, n, *arguments, steps):
    """Of each step of the main job."""
    (folder / "on.py").write_text(ON)
    name = f"{device}-{n}"
    text = str(jobs.ROOT / "mlxdist")  # which no other test writes to meanwhile
    options = ["--steps", str(steps), "--name", name, "--data", text]
    options += arguments
    command = [*RUN, "-n", str(n), "on.py", device, *options]
    exact = {"MLX_ENABLE_TF32": "0"}  # CUDA multiplies with 10 bits otherwise
    ran = jobs.run(command, cwd=folder, env=exact, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    told = map(json.loads, lines)
    found = [one["loss"] for one in told if "loss" in one]
    assert len(found) == steps
    assert all(map(math.isfinite, found))
    return found


@pytest.mark.skipif(
    not mx.is_available(mx.gpu), reason="MLX has no accelerator here: Metal or CUDA"
)
@pytest.mark.parametrize("shard", ["none", "elements", "tensors"])
@pytest.mark.parametrize("n", [1, 2])
def test_the_main_job_trains_on_a_gpu_as_on_a_cpu(tmp_path, n, shard):
    assert mx.default_device() == mx.gpu
    there = losses_on("gpu", tmp_path, n, "--shard", shard, steps=20)
    here = losses_on("cpu", tmp_path, n, "--shard", shard, steps=20)
    assert there == pytest.approx(here, rel=2e-4)  # found on an H200: 1.1e-5
    assert there[-1] < there[0]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shard", ["auto", "none"])
def test_what_is_done_for_a_gpu_gives_the_same_numbers(tmp_path, shard):
    """All that asks which device it is takes the accelerator's way, on a CPU."""
    options = ["--shard", shard, "--batch-size", "2"]
    there = losses_on("pretended", tmp_path, 2, *options, steps=3)
    here = losses_on("cpu", tmp_path, 2, *options, steps=3)
    assert there == pytest.approx(here, rel=1e-5)


# MLX has no float64 on an accelerator: only where a user's own arrays are of it.
FLOAT64 = {
    "arrays/numpy_view.py",
    "comm/exchange.py",
    "optim/accumulation.py",
    "optim/ema.py",
    "optim/grad_norm.py",
}
# Collectives run on the CPU, and so does what makes room for what they write.
CPU = {"arrays/device.py", "arrays/numpy_view.py", "comm/native.py"}


def uses(name):
    """The package's modules that say `mx.NAME`."""
    package = Path(jobs.ROOT, "mlxdist")
    return {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (ast.unparse(node.value), node.attr) == ("mx", name)
    }


def test_nothing_else_names_a_device_or_float64():
    assert uses("float64") == FLOAT64
    assert uses("cpu") == CPU
    assert uses("set_default_device") == uses("set_default_stream") == set()
