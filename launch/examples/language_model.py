"""Trains a transformer language model on the text of Python's own documentation.

mlxdist run -n 2 launch/examples/language_model.py
"""

import argparse
import itertools
import pydoc_data.topics

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

import mlxdist

CONTEXT = 64  # bytes that the model sees


class LanguageModel(nn.Module):
    """Predicts the next byte: (batch, length) of bytes -> (batch, length, 256)."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.position = nn.SinusoidalPositionalEncoding(width)
        self.transformer = nn.TransformerEncoder(
            layers, width, heads, mlp_dims=4 * width, norm_first=True
        )
        self.head = nn.Linear(width, 256)

    def __call__(self, x: mx.array) -> mx.array:
        length = x.shape[1]
        mask = nn.MultiHeadAttention.create_additive_causal_mask(length)
        x = self.embedding(x) + self.position(mx.arange(length))
        return self.head(self.transformer(x, mask))


def loss_of(model: nn.Module, text: mx.array) -> mx.array:
    """Return the mean cross-entropy of the next byte, in nats."""
    logits = model(text[:, :-1])
    return nn.losses.cross_entropy(logits, text[:, 1:], reduction="mean")


def read_rows() -> tuple[mx.array, mx.array]:
    """Return rows of bytes, (rows, CONTEXT + 1): for training, and held-out ones."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    count = len(text) // (CONTEXT + 1)
    rows = np.frombuffer(text, np.uint8)[: count * (CONTEXT + 1)].reshape(count, -1)
    held_out = np.arange(count) % 20 == 0
    return mx.array(rows[~held_out]), mx.array(rows[held_out])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16, help="over all ranks")
    args = parser.parse_args()

    world = mlxdist.init()
    if args.batch_size < world.size:
        parser.error(f"--batch-size is {args.batch_size}, wanted {world.size} or more")
    rows, held_out = read_rows()

    model = LanguageModel()
    rate = optim.join_schedules(
        [optim.linear_schedule(1e-5, 2e-3, 20), optim.cosine_decay(2e-3, args.steps)],
        [20],
    )
    optimizer = mlxdist.DistributedOptimizer(
        optim.AdamW(rate), shard=True, max_norm=1.0
    )
    optimizer.init(model)
    sampler = mlxdist.ShardedSampler(
        len(rows), world=world, batch_size=args.batch_size // world.size
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(sampler))
    for step, batch in enumerate(itertools.islice(epochs, args.steps), 1):
        # Value, gradients, exchange and step in one call, which keeps no gradients.
        loss = optimizer.minimize(loss_of, model, rows[batch], weight=len(batch))
        if step % 20 == 0:
            mean = world.mean(loss.item(), weight=len(batch))
            world.print(f"step {step}: loss {mean:.3f} nats a byte")
    share = held_out[world.rank :: world.size]
    mean = world.mean(loss_of(model, share).item(), weight=len(share))
    same = world.identical(model)
    world.print(f"held-out loss {mean:.3f}, parameters identical on all ranks: {same}")


if __name__ == "__main__":
    main()
