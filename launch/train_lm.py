"""Trains a byte-level transformer on N ranks, with the optimizer's state sharded.

mlxdist run -n 2 launch/train_lm.py
mpirun -n 2 python launch/train_lm.py    # the same
python launch/train_lm.py                # one rank
"""

import argparse
import contextlib
import itertools
import os
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from corpus import read_rows
from model import LEARNING_RATES, Transformer, generate, loss_of, make_optimizer
from report import Report

import mlxdist
from mlxdist.arrays.trees import digest

CONTEXT = 128  # bytes that the model sees
VALIDATIONS = 6


def main() -> None:
    world = mlxdist.init()
    args = parse_arguments(world)
    rows_per_rank = -(-args.batch_size // world.size)
    rows_per_step = rows_per_rank * world.size
    micro_batches = max(1, args.micro_batches // world.size)  # of this rank
    rows = read_rows(args.data, world, context=CONTEXT, needed=rows_per_step)

    world.seed(args.seed)
    model = Transformer()
    model.set_dtype(getattr(mx, args.dtype))
    optimizer = mlxdist.DistributedOptimizer(
        make_optimizer(args.optimizer, args.steps, args.learning_rate),
        shard={"none": False, "auto": True}.get(args.shard, args.shard),
        transport=args.transport,
        max_norm=1.0,
        master_dtype=args.master_dtype and getattr(mx, args.master_dtype),
        accumulate=micro_batches,
        reproducible=args.reproducible,
        world=world,
    )
    optimizer.init(model)  # rank 0's parameters on all ranks

    count = len(rows.train)
    if args.reproducible:  # a last batch of fewer rows would be cut in another way
        count -= count % rows_per_step
    sampler = mlxdist.ShardedSampler(
        count, world=world, seed=args.seed, batch_size=rows_per_rank
    )
    checkpoints = Path("runs", args.name, "checkpoints")
    done = 0  # steps
    if args.resume or world.restarts:
        loaded = mlxdist.load_checkpoint(
            checkpoints, model, optimizer, sampler=sampler, missing_ok=True
        )
        done = loaded.step if loaded else 0
        world.print(f"goes on from step {done}" if loaded else "there is no checkpoint")

    def save(step: int) -> None:
        mlxdist.save_checkpoint(checkpoints, step, model, optimizer, sampler=sampler)

    if done >= args.steps:
        return
    if args.checkpoint_every and not done:
        save(0)  # what a run before this one left here must not be gone on with
    report = Report(args, model, optimizer, done) if world.is_root else None
    epochs = itertools.chain.from_iterable(itertools.repeat(sampler))
    loss_and_gradients = nn.value_and_grad(model, loss_of)
    batches = itertools.islice(epochs, args.steps - done)
    for step, batch in enumerate(batches, done + 1):
        began = time.perf_counter()
        losses = []
        for part in np.array_split(batch, micro_batches):
            loss, gradients = loss_and_gradients(model, mx.array(rows.train[part]))
            optimizer.update(model, gradients, weight=len(part))
            losses.append(loss * len(part))
        # All is evaluated here, on all ranks: code that only rank 0 runs must not be
        # the first to ask for what the ranks work out together.
        mx.eval(model.parameters(), optimizer.state, optimizer.grad_norm)
        total = sum(losses).item()
        mean_loss = world.mean(total / max(1, len(batch)), weight=len(batch))
        tokens_per_second = rows_per_step * CONTEXT / (time.perf_counter() - began)
        if report:
            report.step(step, mean_loss, tokens_per_second)
        if step * VALIDATIONS // args.steps > (step - 1) * VALIDATIONS // args.steps:
            held_out_loss = validate(model, rows.held_out, world)
            if report:
                report.validation(step, held_out_loss)
        if args.checkpoint_every and step % args.checkpoint_every == 0:
            save(step)

    identical = world.identical(model)
    if report:
        report.finish(generate(model, rows.prompt, context=CONTEXT), identical)
        print(f"sha256 of the parameters: {digest(model).tobytes().hex()}")
    world.barrier()  # a rank that exits with an error ends the others
    if not identical:
        sys.exit(1)


def validate(model: nn.Module, rows: mx.array, world: mlxdist.World) -> float:
    """The mean loss of the held-out rows; each rank works on a share of them."""
    own = rows[world.rank :: world.size]
    return world.mean(loss_of(model, own).item(), weight=len(own))


def parse_arguments(world: mlxdist.World) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_lm.py",
        description="Train a byte-level transformer on text, on N ranks.",
        allow_abbrev=False,
    )

    def add(name: str, **options) -> None:
        options["help"] += " (default: %(default)s)" if "default" in options else ""
        parser.add_argument(name, **options)

    shards = ("none", "auto", "elements", "tensors")
    transports = ("auto", "native", "host")
    add("--steps", type=positive, default=240, help="optimizer steps")
    add("--batch-size", type=positive, default=12, help="rows a step, over all ranks")
    add("--optimizer", choices=LEARNING_RATES, default="adamw", help="what to wrap")
    add("--learning-rate", type=float, help="its peak, instead of the optimizer's own")
    add("--shard", choices=shards, default="auto", help="how its state is split")
    add("--transport", choices=transports, default="auto", help="how gradients travel")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="weights")
    add("--master-dtype", choices=("float32",), help="of masters of 16-bit weights")
    add("--micro-batches", type=positive, default=1, help="a step's, over all ranks")
    add("--reproducible", action="store_true", help="the same bits on 1, 2, 4, 8 ranks")
    add("--data", metavar="FOLDER", help="text to train on, instead of Python's own")
    add("--seed", type=int, default=0, help="of the model and the order of the text")
    add("--checkpoint-every", type=positive, metavar="STEPS", help="save so often")
    add("--resume", action="store_true", help="go on from the run's last checkpoint")
    add("--name", default="lm", help="results go to runs/NAME")
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if not world.is_root:  # one rank is enough to print help and errors
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        args = parser.parse_args()
        if args.shard == "elements" and args.optimizer in ("muon", "adafactor"):
            parser.error(f"{args.optimizer} needs whole tensors: --shard tensors")
        check_micro_batches(parser, args, world.size)
        return args


def check_micro_batches(parser, args: argparse.Namespace, ranks: int) -> None:
    """Refuses what can't be cut equally."""
    count = args.micro_batches
    if count > 1 and count % ranks:
        parser.error(f"--micro-batches {count} can't be split over {ranks} ranks")
    if args.reproducible and (count % ranks or args.batch_size % count):
        parser.error(
            f"--reproducible cuts the {args.batch_size} rows of a step into the same "
            f"micro-batches on any number of ranks: found --micro-batches {count}, "
            f"wanted a number that divides {args.batch_size} and that {ranks} divides, "
            "such as --batch-size 16 --micro-batches 8"
        )


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted 1 or more")
    return int(text)


if __name__ == "__main__":
    main()
