"""Trains a byte-level transformer on N ranks, with sharded optimizer state.

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

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from corpus import Rows, read_rows
from model import (
    LEARNING_RATES,
    Transformer,
    generate,
    loss_of,
    micro_batches_per_rank,
    wrap_optimizer,
)
from report import Report
from run_folder import RunFolder, exit_if

import mlxdist
from mlxdist.arrays import digest
from mlxdist.trackers import RunLog
from mlxdist.trackers.services import NAMES

CONTEXT = 128  # bytes that the model sees
VALIDATIONS = 6  # in a run


def main() -> None:
    world = mlxdist.init()
    args = parse_arguments(world)
    rows_per_rank = -(-args.batch_size // world.size)
    rows_per_step = rows_per_rank * world.size
    rows = read_rows(args.data, world, context=CONTEXT, needed=rows_per_step)
    folder = RunFolder(world, args.name, resume=args.resume)

    world.seed(args.seed)
    model = Transformer()
    model.set_dtype(getattr(mx, args.dtype))
    optimizer = wrap_optimizer(args, world)
    optimizer.init(model)  # broadcasts rank 0's parameters

    count = len(rows.train)
    if args.reproducible:  # a smaller last batch would be divided differently
        count -= count % rows_per_step
    sampler = mlxdist.ShardedSampler(
        count, world=world, seed=args.seed, batch_size=rows_per_rank
    )
    training = Training(args, world, model, optimizer, sampler, rows, folder)
    if args.resume or world.restarts:
        training.load()
    if training.done < args.steps:
        training.run()
    else:
        world.print(f"nothing to do: the run has its {args.steps} steps; set --steps")


class Training:
    """The training loop; `done` counts the steps that a loaded checkpoint had."""

    def __init__(
        self,
        args: argparse.Namespace,
        world: mlxdist.World,
        model: nn.Module,
        optimizer: mlxdist.DistributedOptimizer,
        sampler: mlxdist.ShardedSampler,
        rows: Rows,
        folder: RunFolder,
    ):
        self.args, self.world, self.rows, self.done = args, world, rows, 0
        self.model, self.optimizer, self.sampler = model, optimizer, sampler
        self.folder = folder
        self.micro_batches = micro_batches_per_rank(args, world)
        self.loss_and_gradients = nn.value_and_grad(model, loss_of)

    def run(self) -> None:
        """Take the steps that are left, and report them."""
        args, begun = self.args, self.done
        report = Report(args, self.folder, self.model, self.optimizer)
        with RunLog(
            self.folder.path,
            optimizer=self.optimizer,
            trackers=args.track or (),
            config=vars(args),
            steps=args.steps,
            done=begun,
            progress="ranks" if args.rank_rows else "line",
            title=f"{report.title}\noptimizer state {report.state}",
        ) as log:
            self.train(log)
        self.finish(report, begun)

    def train(self, log: RunLog) -> None:
        """Take the steps, with validations and checkpoints between them."""
        args = self.args
        if args.checkpoint_every and not self.done:
            self.save(0)
        epochs = itertools.chain.from_iterable(itertools.repeat(self.sampler))
        batches = itertools.islice(epochs, args.steps - self.done)
        for step, batch in enumerate(batches, self.done + 1):
            loss = self.step(batch)
            tokens = len(batch) * CONTEXT
            log.step(loss, tokens=tokens, grad_norm=self.optimizer.grad_norm)
            with log.paused():
                if is_due(step, args.steps):
                    self.validate(log)
                if args.checkpoint_every and step % args.checkpoint_every == 0:
                    self.save(step)

    def step(self, batch: mx.array) -> float:
        """Take one step on this rank's rows, and return their mean loss."""
        losses = []
        for part in np.array_split(batch, self.micro_batches):
            rows = mx.array(self.rows.train[part])
            loss, gradients = self.loss_and_gradients(self.model, rows)
            self.optimizer.update(self.model, gradients, weight=len(part))
            losses.append(loss * len(part))
        # Evaluate on all ranks. Code that only rank 0 runs must not be the first to
        # evaluate a result of the ranks' communication: it would wait for the others.
        # Not the parameters, which may arrive behind the next forward pass.
        mx.eval(self.optimizer.state, self.optimizer.grad_norm)
        return sum(losses).item() / max(1, len(batch))

    def validate(self, log: RunLog) -> None:
        """Report the mean loss of the held-out rows, which the ranks share."""
        began = time.perf_counter()
        rows = self.rows.held_out[self.world.rank :: self.world.size]
        loss = loss_of(self.model, rows).item()
        seconds = time.perf_counter() - began
        log.validation(loss, seconds=seconds, weight=len(rows))

    def save(self, step: int) -> None:
        mlxdist.save_checkpoint(
            self.folder.checkpoints,
            step,
            self.model,
            self.optimizer,
            sampler=self.sampler,
        )

    def load(self) -> None:
        """Load the last checkpoint of this run, if there is one."""
        problem = loaded = None
        try:
            loaded = mlxdist.load_checkpoint(
                self.folder.checkpoints,
                self.model,
                self.optimizer,
                sampler=self.sampler,
                missing_ok=True,
            )
        except mlxdist.CheckpointError as error:  # on all ranks
            problem = error
        exit_if(self.world, problem)
        self.done = loaded.step if loaded else 0
        self.world.print(
            f"resumes after step {self.done}" if loaded else "there is no checkpoint"
        )

    def finish(self, report: Report, begun: int) -> None:
        """Report the run; exit with code 1 if the ranks' parameters differ."""
        identical = self.world.identical(self.model)
        if self.world.is_root:
            sample = generate(self.model, self.rows.prompt, context=CONTEXT)
            report.finish(begun, sample, identical)
            print(f"sha256 of the parameters: {digest(self.model).tobytes().hex()}")
        self.world.barrier()  # a rank that exits with an error ends the others
        if not identical:
            sys.exit(1)


def is_due(step: int, steps: int) -> bool:
    """Return whether a validation follows this step."""
    return step * VALIDATIONS // steps > (step - 1) * VALIDATIONS // steps


def parse_arguments(world: mlxdist.World) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_lm.py",
        usage="train_lm.py [OPTION ...]    (--help lists the options)",
        description="Train a byte-level transformer on text, on N ranks.",
        allow_abbrev=False,
    )

    def add(name: str, **options) -> None:
        options["help"] += " (default: %(default)s)" if "default" in options else ""
        parser.add_argument(name, **options)

    shards = ("none", "auto", "elements", "tensors")
    transports = ("auto", "native", "host")
    dtypes = ("float32", "bfloat16")
    add("--steps", type=positive, default=240, help="optimizer steps")
    add("--batch-size", type=positive, default=12, help="rows a step, over all ranks")
    add("--optimizer", choices=LEARNING_RATES, default="adamw", help="what to wrap")
    add("--learning-rate", type=rate, help="the peak (default: the optimizer's)")
    add("--shard", choices=shards, default="auto", help="how state is sharded")
    add("--transport", choices=transports, default="auto", help="for gradients")
    add("--dtype", choices=dtypes, default="float32", help="of the parameters")
    masters = ("float32", "24bit")
    add("--master-dtype", choices=masters, help="of 16-bit parameters' masters")
    add("--state-dtype", choices=("int8",), help="of the optimizer's moments")
    add("--micro-batches", type=positive, default=1, help="a step, over all ranks")
    add("--reproducible", action="store_true", help="equal bits on 1, 2, 4, 8 ranks")
    add("--data", metavar="FOLDER", help="text files (default: Python's library)")
    add("--seed", type=seed, default=0, help="of the model and the order of the text")
    add("--checkpoint-every", type=positive, metavar="STEPS", help="save a checkpoint")
    add("--resume", action="store_true", help="continue from the last checkpoint")
    add("--track", choices=NAMES, action="append", help="where reports go as well")
    add("--rank-rows", action="store_true", help="show a row for each rank")
    add("--name", type=name_of_run, help="results go to runs/NAME (default: a new one)")
    with open(os.devnull, "w") as devnull, contextlib.ExitStack() as stack:
        if not world.is_root:  # rank 0 alone prints help and errors
            stack.enter_context(contextlib.redirect_stdout(devnull))
            stack.enter_context(contextlib.redirect_stderr(devnull))
        try:
            args = parser.parse_args()
            check_arguments(parser, args, world.size)
        except SystemExit:
            world.barrier()  # mpirun ends the others as soon as one has exited
            raise
        return args


def check_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, ranks: int
) -> None:
    """Exit with an error where options contradict each other or the number of ranks."""
    if args.shard == "elements" and args.optimizer in ("muon", "adafactor"):
        parser.error(f"{args.optimizer} needs whole tensors: --shard tensors")
    if args.state_dtype and args.optimizer in ("muon", "adafactor"):
        parser.error(f"{args.optimizer} has no state in 8 bits: drop --state-dtype")
    if args.master_dtype and args.dtype == "float32":
        parser.error(
            f"--master-dtype {args.master_dtype} has no effect on {args.dtype} "
            "parameters: leave it out, or add --dtype bfloat16"
        )
    count = args.micro_batches
    if count > args.batch_size:
        parser.error(
            f"--micro-batches {count}: found more than the {args.batch_size} rows of a "
            "step, see --batch-size"
        )
    if count > 1 and count % ranks:
        parser.error(f"--micro-batches {count} can't be split over {ranks} ranks")
    if args.reproducible and (count % ranks or args.batch_size % count):
        parser.error(
            f"--reproducible divides the {args.batch_size} rows of a step into the "
            f"same micro-batches on any number of ranks: found --micro-batches {count},"
            f" wanted a divisor of {args.batch_size} and a multiple of {ranks}, such "
            "as --batch-size 16 --micro-batches 8"
        )


def positive(text: str) -> int:
    return integer(text, 1, 10**9)


def seed(text: str) -> int:
    return integer(text, 0, 2**64 - 1)


def integer(text: str, least: int, most: int) -> int:
    # Longer texts are too large. Python refuses to convert those above 4300 digits.
    if text.isdecimal() and len(text) < 100 and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"found {text!r}, wanted an integer from {least} to {most}"
    )


def rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number from 0 on")


def name_of_run(text: str) -> str:
    is_short = len(os.fsencode(text)) < 256
    is_name = text.isprintable() and text.strip(". ") and not {"/", "\\"} & set(text)
    if is_short and is_name:
        return text
    raise argparse.ArgumentTypeError(f"found {text!r}, wanted the name of a folder")


if __name__ == "__main__":
    main()
