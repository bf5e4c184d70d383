"""Trains a GAN, two models with an optimizer each, on scikit-learn's digits.

mlxdist run -n 2 launch/examples/gan.py
"""

import argparse

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from sklearn.datasets import load_digits

import mlxdist

NOISE = 16  # numbers that an image is made from
SHADES = " .:+*#"


def make_generator() -> nn.Module:
    """Return a model that makes images: (batch, NOISE) -> (batch, 64) in 0 to 1."""
    return nn.Sequential(
        nn.Linear(NOISE, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()
    )


def make_discriminator() -> nn.Module:
    """Return a model that tells images of digits: (batch, 64) -> (batch, 1) logits."""
    return nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))


def cross_entropy(logits: mx.array, target: int) -> mx.array:
    targets = mx.full(logits.shape, target)
    return nn.losses.binary_cross_entropy(logits, targets, reduction="mean")


def d_loss_of(discriminator: nn.Module, images: mx.array, made: mx.array) -> mx.array:
    """Return the loss of a discriminator, which should tell images from made ones."""
    fake = cross_entropy(discriminator(made), 0)
    return cross_entropy(discriminator(images), 1) + fake


def g_loss_of(
    generator: nn.Module, discriminator: nn.Module, noise: mx.array
) -> mx.array:
    """Return the loss of a generator, whose images should pass for real ones."""
    return cross_entropy(discriminator(generator(noise)), 1)


def make_optimizer(model: nn.Module) -> mlxdist.DistributedOptimizer:
    optimizer = mlxdist.DistributedOptimizer(optim.Adam(1e-3, betas=[0.5, 0.99]))
    optimizer.init(model)
    return optimizer


def draw(images: mx.array, world: mlxdist.World) -> None:
    """Print rank 0's images, (8, 64), side by side."""
    rows = images.reshape(8, 8, 8).swapaxes(0, 1).reshape(8, 64)
    shades = (rows * (len(SHADES) - 1)).round().astype(mx.int32)
    for row in shades.tolist():
        world.print("".join(2 * SHADES[shade] for shade in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64, help="over all ranks")
    args = parser.parse_args()

    world = mlxdist.init()
    if args.batch_size < world.size:
        parser.error(f"--batch-size is {args.batch_size}, wanted {world.size} or more")
    images = mx.array(load_digits().data, mx.float32) / 16
    generator, discriminator = make_generator(), make_discriminator()
    g_optimizer, d_optimizer = make_optimizer(generator), make_optimizer(discriminator)
    g_loss_and_gradients = nn.value_and_grad(generator, g_loss_of)
    d_loss_and_gradients = nn.value_and_grad(discriminator, d_loss_of)
    sampler = mlxdist.ShardedSampler(
        len(images), world=world, batch_size=args.batch_size // world.size
    )
    for epoch in range(1, args.epochs + 1):
        for batch in sampler:
            noise = mx.random.normal((len(batch), NOISE))  # of this rank's own
            d_loss, gradients = d_loss_and_gradients(
                discriminator, images[batch], generator(noise)
            )
            d_optimizer.update(discriminator, gradients, weight=len(batch))
            g_loss, gradients = g_loss_and_gradients(generator, discriminator, noise)
            g_optimizer.update(generator, gradients, weight=len(batch))
        means = [world.mean(x.item(), weight=len(batch)) for x in (d_loss, g_loss)]
        if epoch % 10 == 0:
            world.print(
                f"epoch {epoch}: losses {means[0]:.3f} (discriminator), "
                f"{means[1]:.3f} (generator)"
            )
    draw(generator(mx.random.normal((8, NOISE))), world)


if __name__ == "__main__":
    main()
