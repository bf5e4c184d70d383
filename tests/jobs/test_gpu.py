"""The main job on an accelerator, where there is one, trains as on a CPU.

Which modules may name a device is a rule of ruff in pyproject.toml.
"""

import json
import math

import mlx.core as mx
import pytest

from tests.support import jobs

# Runs the main job on a device: cpu, gpu, or the CPU while MLX says it is a GPU.
TRAIN_ON_DEVICE = f"""
import runpy, sys
import mlx.core as mx
device = sys.argv.pop(1)
if device == "cpu":
    mx.set_default_device(mx.cpu)
if device == "pretended":
    mx.default_device = lambda: mx.gpu
assert (mx.default_device() == mx.cpu) == (device == "cpu")
sys.path.insert(0, {str(jobs.LAUNCH)!r})
sys.argv[0] = {str(jobs.LAUNCH / "train_lm.py")!r}
import model
model.generate = lambda *_, **__: ""  # slow, byte by byte
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train(device, folder, ranks, *arguments, steps):
    """Run the main job on a device and return the losses that it reports."""
    (folder / "train.py").write_text(TRAIN_ON_DEVICE)
    name = f"{device}-{ranks}"
    text = str(jobs.ROOT / "mlxdist")  # no other test writes there meanwhile
    options = ["--steps", str(steps), "--name", name, "--data", text, *arguments]
    command = [*jobs.MLXDIST_RUN, "-n", str(ranks), "train.py", device, *options]
    exact = {"MLX_ENABLE_TF32": "0"}  # CUDA multiplies with 10 bits otherwise
    ran = jobs.run(command, cwd=folder, env=exact, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    key = "train_loss"
    losses = [line[key] for line in map(json.loads, lines) if key in line]
    assert len(losses) == -(-steps // 10)
    assert all(map(math.isfinite, losses))
    return losses


@pytest.mark.skipif(
    not mx.is_available(mx.gpu), reason="MLX has no accelerator here: Metal or CUDA"
)
@pytest.mark.parametrize("shard", ["none", "elements", "tensors"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_main_job_on_a_gpu_trains_as_on_a_cpu(tmp_path, ranks, shard):
    assert mx.default_device() == mx.gpu
    on_gpu = train("gpu", tmp_path, ranks, "--shard", shard, steps=20)
    on_cpu = train("cpu", tmp_path, ranks, "--shard", shard, steps=20)
    assert on_gpu == pytest.approx(on_cpu, rel=2e-4)  # measured on an H200: 1.1e-5
    assert on_gpu[-1] < on_gpu[0]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shard", ["auto", "none"])
def test_main_job_on_a_pretended_gpu_gives_the_losses_of_a_cpu(tmp_path, shard):
    """All that depends on the device takes the accelerator's way, on a CPU."""
    options = ["--shard", shard, "--batch-size", "2"]
    pretended = train("pretended", tmp_path, 2, *options, steps=3)
    on_cpu = train("cpu", tmp_path, 2, *options, steps=3)
    assert pretended == pytest.approx(on_cpu, rel=1e-5)
