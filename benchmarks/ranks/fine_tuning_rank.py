"""One rank of `fine_tuning`: training by mlx-lm's own `train`, or by mlxdist's.

fine_tuning_rank.py CONTENDER KIND WIDTH LAYERS, under mpirun.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tuner import trainer
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.utils import linear_to_lora_layers

from ranks.protocol import serve_requests

OPTIONS = {"compiled": {"compiled": True}, "minimize": {"compiled": False}}
UPSTREAM = "mlx-lm"
CONTENDERS = (UPSTREAM, *OPTIONS)
STEPS = 2  # of a sample; as many come before it
ROWS = 2  # of a batch, on all ranks together
TOKENS = 9  # so that state takes most of the memory
VOCABULARY = 8192


class Rows:
    """Rows of random tokens, all of one length, as mlx-lm's datasets have them."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> list[int]:
        random = np.random.default_rng(index)
        return random.integers(0, VOCABULARY, TOKENS).tolist()

    def process(self, row: list[int]) -> tuple[list[int], int]:
        return row, 0


class Clock:
    """Takes the times between the last two reports of a training."""

    def __init__(self) -> None:
        self.processor: list[float] = []
        self.info: dict[str, Any] = {}

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        self.processor.append(time.process_time())
        self.info = info

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        pass


def make_model(kind: str, width: int, layers: int) -> Model:
    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=width,
            num_hidden_layers=layers,
            intermediate_size=11 * width // 4,
            num_attention_heads=8,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
        )
    )
    if kind == "lora":
        model.freeze()
        linear_to_lora_layers(model, layers, {"rank": 8, "dropout": 0.0, "scale": 2.0})
    mx.eval(model.parameters())
    return model


def main() -> None:
    contender, kind, width, layers = sys.argv[1:]
    optimizer: Any = optim.AdamW(1e-4)
    train, options = trainer.train, OPTIONS.get(contender)
    if options is None:
        rank = mx.distributed.init().rank()
    else:
        import mlxdist
        from mlxdist.integrations.mlx_lm import train

        rank = mlxdist.init().rank
        optimizer = mlxdist.DistributedOptimizer(optimizer, shard=True)
    bare = status("VmRSS")
    model = make_model(kind, int(width), int(layers))
    data = CacheDataset(Rows())
    folder = tempfile.TemporaryDirectory()

    def handle() -> dict[str, float]:
        """Train, and return the figures of the last report."""
        clock = Clock()
        args = trainer.TrainingArgs(
            batch_size=ROWS,
            iters=2 * STEPS,
            steps_per_report=STEPS,
            steps_per_save=10**9,
            max_seq_length=TOKENS,
            adapter_file=str(Path(folder.name, "adapters.safetensors")),
        )
        np.random.seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            train(
                model,
                optimizer,
                data,
                args=args,
                training_callback=clock,
                **(options or {}),
            )
        return {
            "wall": 1 / clock.info["iterations_per_second"],
            "processor": (clock.processor[1] - clock.processor[0]) / STEPS,
            "tokens_per_second": clock.info["tokens_per_second"],
            "loss": clock.info["train_loss"],
            "peak_memory": 1e9 * clock.info["peak_memory"],
            "resident": status("VmHWM") - bare,
        }

    serve_requests(rank, handle)


def status(name: str) -> int:
    """Return bytes of this process's memory, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()
