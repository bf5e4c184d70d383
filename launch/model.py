"""A small byte-level transformer, its optimizers, and generation of text."""

from __future__ import annotations

import argparse

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import mlxdist

BYTES = 256
LEARNING_RATES = {
    "adamw": 3e-3,
    "adam": 3e-3,
    "sgd": 0.2,
    "lion": 1e-3,
    "muon": 1e-2,
    "adafactor": 3e-3,
}


class NgramEmbedding(nn.Module):
    """Byte embeddings plus hashed embeddings of the last 2, 3 and 4 bytes.

    Most of the model's parameters are in the hash tables. They take memory but little
    time, so the model learns quickly on a CPU.
    """

    def __init__(self, width: int, table_sizes: tuple[int, ...]):
        super().__init__()
        self.bytes = nn.Embedding(BYTES, width)
        self.bytes.weight = 0.02 * mx.random.normal((BYTES, width))
        self.tables = [nn.Embedding(size, width) for size in table_sizes]
        for table in self.tables:
            table.weight = mx.zeros_like(table.weight)

    def __call__(self, x: mx.array) -> mx.array:
        result = self.bytes(x)
        earlier = ngram = x.astype(mx.uint32)
        for table in self.tables:
            earlier = mx.pad(earlier[:, :-1], ((0, 0), (1, 0)))
            ngram = ngram * mx.array(2654435761, mx.uint32) + earlier
            mixed = (ngram ^ (ngram >> 15)) * mx.array(2246822519, mx.uint32)
            result = result + table((mixed >> 8) % table.weight.shape[0])
        return result


class Block(nn.Module):
    """Causal attention, then two layers with a squared ReLU between them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.rope = nn.RoPE(width // heads)
        self.mlp_norm = nn.RMSNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        # Blocks that add nothing at first make the start of deep models stable.
        for layer in (self.attention_out, self.mlp_out):
            layer.weight = mx.zeros_like(layer.weight)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp_out(nn.relu2(self.mlp_in(self.mlp_norm(x))))

    def attention(self, x: mx.array) -> mx.array:
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, width // self.heads).swapaxes(1, 2)
            for part in mx.split(self.query_key_value(x), 3, axis=-1)
        )
        mixed = mx.fast.scaled_dot_product_attention(
            self.rope(q), self.rope(k), v, scale=q.shape[-1] ** -0.5, mask="causal"
        )
        return self.attention_out(mixed.swapaxes(1, 2).reshape(batch, length, width))


class Transformer(nn.Module):
    """Predicts the next byte: (batch, length) of bytes -> (batch, length, 256)."""

    def __init__(
        self,
        *,
        width: int = 96,
        heads: int = 3,
        layers: int = 2,
        table_sizes: tuple[int, ...] = (4096, 8192, 8192),
    ):
        super().__init__()
        self.embedding = NgramEmbedding(width, table_sizes)
        self.blocks = [Block(width, heads) for _ in range(layers)]
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def is_hidden_matrix(path: str, parameter: mx.array) -> bool:
    """Return whether a parameter is a matrix that Muon is meant for."""
    return path.startswith("blocks.") and parameter.ndim == 2


def make_optimizer(
    name: str, steps: int, learning_rate: float | None = None
) -> optim.Optimizer:
    """Return an MLX optimizer: a tenth of the steps is warmup, then cosine decay.

    Args:
        learning_rate: the peak; LEARNING_RATES has the default. With "muon", that of
            AdamW, which updates embeddings and norms, is scaled alike.
    """
    peak = LEARNING_RATES[name] if learning_rate is None else learning_rate
    warmup = max(1, steps // 10)
    rise = optim.linear_schedule(peak / warmup, peak, warmup)
    fall = optim.cosine_decay(peak, max(1, steps - warmup), 0.05 * peak)
    rate = optim.join_schedules([rise, fall], [warmup])
    betas = [0.9, 0.99]
    if name == "adamw":
        return optim.AdamW(rate, betas=betas, weight_decay=0.1)
    if name == "adam":
        return optim.Adam(rate, betas=betas)
    if name == "sgd":
        return optim.SGD(rate, momentum=0.9)
    if name == "lion":
        return optim.Lion(rate, betas=betas, weight_decay=0.5)
    if name == "adafactor":
        return optim.Adafactor(rate, relative_step=False, scale_parameter=False)
    muon = optim.Muon(rate, weight_decay=0.01)
    scale = peak / LEARNING_RATES["muon"]
    others = make_optimizer("adamw", steps, scale * LEARNING_RATES["adamw"])
    return optim.MultiOptimizer([muon, others], [is_hidden_matrix])


def wrap_optimizer(
    args: argparse.Namespace, world: mlxdist.World
) -> mlxdist.DistributedOptimizer:
    return mlxdist.DistributedOptimizer(
        make_optimizer(args.optimizer, args.steps, args.learning_rate),
        shard={"none": False, "auto": True}.get(args.shard, args.shard),
        transport=args.transport,
        max_norm=1.0,
        master_dtype=mx.float32
        if args.master_dtype == "float32"
        else args.master_dtype,
        state_dtype=args.state_dtype,
        accumulate=micro_batches_per_rank(args, world),
        reproducible=args.reproducible,
        world=world,
    )


def micro_batches_per_rank(args: argparse.Namespace, world: mlxdist.World) -> int:
    return max(1, args.micro_batches // world.size)


def loss_of(model: nn.Module, x: mx.array) -> mx.array:
    """Return the mean cross-entropy of the next byte, in nats.

    Args:
        x: (batch, length) of bytes.
    """
    if not x.size:
        return mx.array(0.0)  # a rank may have none of the last rows
    logits = model(x[:, :-1]).astype(mx.float32)
    return nn.losses.cross_entropy(logits, x[:, 1:], reduction="mean")


def generate(
    model: nn.Module,
    prompt: str,
    *,
    length: int = 256,
    context: int = 128,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """Return a prompt with `length` sampled bytes, of which printable ones are kept."""
    key = mx.random.key(seed)
    text = list(prompt.encode())
    for _ in range(length):
        key, drawn = mx.random.split(key)
        logits = model(mx.array([text[-context:]]))[0, -1].astype(mx.float32)
        text.append(mx.random.categorical(logits / temperature, key=drawn).item())
    readable = bytes(text).decode(errors="replace")
    return "".join(c for c in readable if c.isprintable() or c == "\n")
