"""Trains a vision-language model to read digits, with mlx-vlm's Trainer.

pip install mlx-vlm scikit-learn
mlxdist run -n 2 launch/examples/vision_language.py
"""

import argparse

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_vlm.models.qwen2_vl import Model, ModelConfig, TextConfig, VisionConfig
from mlx_vlm.trainer import Trainer, VLMTrainingArgs
from mlx_vlm.trainer.common import utils
from sklearn.datasets import load_digits

import mlxdist

TEST = 100  # images that are kept for the test
START, IMAGE, QUESTION = 10, 11, 12  # tokens; 0 to 9 are the answers


def make_model() -> nn.Module:
    """Return a small Qwen2-VL, made from its configuration: nothing is downloaded."""
    vision = VisionConfig(
        depth=2, embed_dim=32, hidden_size=48, num_heads=2, patch_size=2
    )
    text = TextConfig(
        model_type="qwen2_vl",
        hidden_size=48,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        vocab_size=13,
        rope_scaling={"type": "mrope", "mrope_section": [4, 4, 4]},
    )
    special = {"image_token_id": IMAGE, "vision_start_token_id": START}
    return Model(ModelConfig(text, vision, "qwen2_vl", video_token_id=-1, **special))


def make_rows() -> list[dict[str, mx.array]]:
    """Return rows of tokens: an image, the question, and the digit as the answer."""
    digits = load_digits()
    # 2x2 groups of 2x2 patches, each patch for 3 colors and 2 moments.
    patches = digits.images.reshape(-1, 2, 2, 2, 2, 2, 2).transpose(0, 1, 4, 2, 5, 3, 6)
    pixels = np.repeat(patches.reshape(-1, 16, 1, 4) / 4 - 2, 6, axis=2)
    return [
        {
            "input_ids": mx.array([START, *4 * [IMAGE], QUESTION, digit]),
            "completion_mask": mx.array([0] * 6 + [1]),
            "pixel_values": mx.array(image.reshape(16, 24), mx.float32),
            "image_grid_thw": mx.array([1, 4, 4]),
        }
        for image, digit in zip(pixels, digits.target.tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer")
    parser.add_argument("--batch-size", type=int, default=16, help="over all ranks")
    args = parser.parse_args()

    world = mlxdist.init()
    if args.batch_size < 1 or args.batch_size % world.size:
        parser.error(f"--batch-size must be a multiple of {world.size}, the ranks")
    model, rows = make_model(), make_rows()
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=True)
    optimizer.init(model)  # before Trainer: all ranks begin with rank 0's parameters
    # mlx-vlm averages the gradients by itself. The optimizer does: not twice.
    utils.average_gradients = lambda gradients: gradients
    trainer = Trainer(
        model,
        VLMTrainingArgs(
            batch_size=args.batch_size,
            iters=args.steps,
            steps_per_report=100,
            steps_per_eval=None,
            adapter_file="runs/vision_language/adapters.safetensors",
            val_batches=-1,
            train_on_completions=True,
            pad_to_multiple=1,
        ),
        train_dataset=rows[:-TEST],
        eval_dataset=rows[-TEST:],
        optimizer=optimizer,
        prepared=True,
    )
    trainer.train()
    loss = trainer.evaluate()["val_loss"]  # by all ranks together
    right = world.identical(model)
    world.print(f"test loss {loss:.3f}, parameters identical on all ranks: {right}")


if __name__ == "__main__":
    main()
