"""A `RunLog` as the callback of mlx-lm's training."""

import json

import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.integrations.mlx_lm import train
from mlxdist.trackers import RunLog
from tests.support.fine_tuning import arguments, rows, tiny_model

KEYS = {
    "train_loss",
    "learning_rate",
    "iterations_per_second",
    "tokens_per_second",
    "trained_tokens",
    "peak_memory",
    "step_time",
}


@pytest.mark.mpi
def test_training_of_mlx_lm_writes_its_reports(world, shared_folder):
    args = arguments(shared_folder, iters=2, steps_per_report=1)
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=True, world=world)
    with RunLog(shared_folder / "run", optimizer=optimizer, progress=None) as log:
        options = {"compiled": False, "training_callback": log}
        train(tiny_model("full"), optimizer, rows(30), rows(15), args, **options)
    world.barrier()
    text = (shared_folder / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 1, 2]
    first, *_, last = lines
    assert first.keys() == {"step", "time", "val_loss", "val_time"}
    assert last.keys() >= KEYS
    # Means over ranks of a time and of its inverse.
    rate = last["iterations_per_second"]
    assert last["step_time"] == pytest.approx(1 / rate, rel=0.2)
    assert last["trained_tokens"] > lines[1]["trained_tokens"]
