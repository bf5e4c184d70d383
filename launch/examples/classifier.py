"""Trains an image classifier, a small ResNet, on scikit-learn's 1,797 digits.

mlxdist run -n 2 launch/examples/classifier.py
"""

import argparse

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from sklearn.datasets import load_digits

import mlxdist

TEST = 360  # images that are kept for the test


class Block(nn.Module):
    """Two convolutions with batch norm, added to their input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm(channels)

    def __call__(self, x: mx.array) -> mx.array:
        y = nn.relu(self.norm1(self.conv1(x)))
        return nn.relu(x + self.norm2(self.conv2(y)))


class ResNet(nn.Module):
    """Classifies images of 8x8: (batch, 8, 8, 1) -> (batch, 10) logits."""

    def __init__(self, channels: int = 16, blocks: int = 2):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = [Block(channels) for _ in range(blocks)]
        self.head = nn.Linear(16 * channels, 10)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = nn.AvgPool2d(2, 2)(x)
        return self.head(x.flatten(1))


def loss_of(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(x), y, reduction="mean")


def accuracy(model: nn.Module, x: mx.array, y: mx.array, world: mlxdist.World) -> float:
    """Return the share of right answers; each rank classifies a part of the images."""
    x, y = x[world.rank :: world.size], y[world.rank :: world.size]
    model.eval()  # batch norm uses its running statistics
    share = (model(x).argmax(1) == y).mean().item()
    model.train()
    return world.mean(share, weight=len(y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64, help="over all ranks")
    args = parser.parse_args()

    world = mlxdist.init()
    if args.batch_size < world.size:
        parser.error(f"--batch-size is {args.batch_size}, wanted {world.size} or more")
    digits = load_digits()
    images = mx.array(digits.images[..., None], mx.float32) / 16
    labels = mx.array(digits.target)
    train, test = images[:-TEST], images[-TEST:]

    model = ResNet()
    rate = optim.cosine_decay(3e-3, args.epochs * -(-len(train) // args.batch_size))
    # Batch norm's running statistics follow each rank's images: average them.
    optimizer = mlxdist.DistributedOptimizer(
        optim.AdamW(rate), shard=True, sync_buffers="mean"
    )
    optimizer.init(model)
    loss_and_gradients = nn.value_and_grad(model, loss_of)
    sampler = mlxdist.ShardedSampler(
        len(train), world=world, batch_size=args.batch_size // world.size
    )
    for epoch in range(args.epochs):
        for batch in sampler:
            loss, gradients = loss_and_gradients(model, train[batch], labels[batch])
            optimizer.update(model, gradients, weight=len(batch))
        mean = world.mean(loss.item(), weight=len(batch))
        right = accuracy(model, test, labels[-TEST:], world)
        world.print(f"epoch {epoch + 1}: loss {mean:.3f}, test accuracy {right:.1%}")


if __name__ == "__main__":
    main()
