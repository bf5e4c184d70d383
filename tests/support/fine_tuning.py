"""A tiny model and data for mlx-lm, and mlx-lm's own training in one process."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tuner import trainer
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxdist.integrations.mlx_lm.upstream import replaced

VOCABULARY = 31


class Rows:
    """Rows of tokens, of different lengths, as mlx-lm's datasets have them."""

    def __init__(self, count: int, seed: int = 0):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(3, 60, count)
        self._rows = [draw.integers(0, VOCABULARY, n).tolist() for n in lengths]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> list[int]:
        return self._rows[index]

    def process(self, row: list[int]) -> tuple[list[int], int]:
        return row, len(row) // 3  # a prompt that is masked


def rows(count: int, seed: int = 0) -> CacheDataset:
    return CacheDataset(Rows(count, seed))


def tiny_model(kind: str = "full", *, seed: int = 0, dropout: float = 0.0) -> Model:
    """Return a Llama of one layer, to be trained by "lora", "dora" or in "full"."""
    mx.random.seed(seed)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=32,
            num_attention_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
        )
    )
    if kind != "full":
        model.freeze()
        settings = {"rank": 4, "dropout": dropout, "scale": 2.0}
        linear_to_lora_layers(model, 1, settings, use_dora=kind == "dora")
    mx.eval(model.parameters())
    return model


class Reports:
    """A `TrainingCallback` that keeps what it is given."""

    def __init__(self):
        self.train: list[dict] = []
        self.val: list[dict] = []

    def on_train_loss_report(self, info):
        self.train.append(info)

    def on_val_loss_report(self, info):
        self.val.append(info)

    @property
    def losses(self) -> list[float]:
        return [info["train_loss"] for info in self.train]

    @property
    def val_losses(self) -> list[float]:
        return [info["val_loss"] for info in self.val]


def arguments(folder, **changes) -> trainer.TrainingArgs:
    return trainer.TrainingArgs(
        **{
            "batch_size": 12,
            "iters": 6,
            "steps_per_report": 1,
            "steps_per_eval": 3,
            "adapter_file": str(folder / "adapters.safetensors"),
            **changes,
        }
    )


def whole_batches(**keywords) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield batches as mlx-lm does in one process, on each of several ranks."""
    return trainer.iterate_batches(**{**keywords, "comm_group": None})


def train_alone(kind: str, args, *, optimizer=None, sets=None) -> tuple[Model, Reports]:
    """Train as mlx-lm does in one process. On several ranks each does all of it."""
    model, reports = tiny_model(kind), Reports()
    np.random.seed(0)
    mx.disable_compile()  # kernels of a CPU take seconds to compile
    try:
        with replaced(trainer, average_gradients=lambda gradients: gradients):
            trainer.train(
                model,
                optimizer or optim.AdamW(1e-3),
                *(sets or (rows(30), rows(15, seed=1))),
                args,
                iterate_batches=whole_batches,
                training_callback=reports,
            )
    finally:
        mx.enable_compile()
    return model, reports


def difference(a: Model, b: Model) -> float:
    """Return the largest difference between two models' parameters."""
    pairs = zip(tree_flatten(a.parameters()), tree_flatten(b.parameters()), strict=True)
    return max(mx.abs(x - y).max().item() for (_, x), (_, y) in pairs)
