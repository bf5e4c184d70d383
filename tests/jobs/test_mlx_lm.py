"""The commands of docs/mlx_lm.md, as a user runs them, and a job that is killed."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.jobs import (
    LAUNCH,
    MLXDIST_RUN,
    ROOT,
    end_session,
    run,
    start,
    wait_until,
)

pytestmark = pytest.mark.long
LORA = ["-m", "mlxdist.integrations.mlx_lm", "lora", "--config"]
PROGRAMS = Path(sys.executable).parent


def commands():
    """Return the commands of the section "From nothing to an adapter"."""
    text = (ROOT / "docs/mlx_lm.md").read_text().split("## From nothing")[1]
    return re.search(r"```bash\n(.*?)```", text, re.S)[1].strip().splitlines()


def finish(command, folder):
    words = shlex.split(command)
    program = [str(PROGRAMS / words[0]), *words[1:]]
    result = run(program, cwd=folder, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses(folder):
    lines = (folder / "mlxdist/metrics.jsonl").read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    return {r["step"]: r["train_loss"] for r in reports if "train_loss" in r}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "launch").symlink_to(LAUNCH)
    return tmp_path


@pytest.mark.timeout(400)
def test_page_commands_make_an_adapter_that_mlx_lm_generates_with(folder):
    outputs = [finish(command, folder) for command in commands()]
    assert "resumes after iteration 20" in outputs[2]
    assert "Generation:" in outputs[3]
    assert (folder / "tiny/fused/model.safetensors").exists()


@pytest.mark.timeout(400)
def test_job_killed_in_the_middle_resumes_on_one_rank_with_the_same_losses(folder):
    finish(commands()[0], folder)
    config = folder / "full.yaml"
    text = (LAUNCH / "examples/lora.yaml").read_text()
    config.write_text(text.replace("lora #", "full #"))
    options = [*LORA, str(config), "--steps-per-report", "1", "--iters", "14"]
    whole, killed = ["--adapter-path", "whole"], ["--adapter-path", "killed"]
    never = ["--checkpoint-every", "0"]
    finish(shlex.join(["mlxdist", "run", "-n", "1", *options, *whole, *never]), folder)
    command = [*MLXDIST_RUN, "-n", "2", *options, *killed, "--checkpoint-every", "3"]
    with start(command, cwd=folder) as job:
        saved = folder / "killed/mlxdist/checkpoints"
        assert wait_until(lambda: len(list(saved.glob("save-*"))) > 1, 100)
        end_session(job.pid)
    assert max(losses(folder / "killed")) < 14
    resumed = ["mlxdist", "run", "-n", "1", *options, *killed, "--resume"]
    finish(shlex.join(resumed), folder)
    expected = losses(folder / "whole")
    assert losses(folder / "killed") == pytest.approx(expected, rel=0, abs=1e-5)
