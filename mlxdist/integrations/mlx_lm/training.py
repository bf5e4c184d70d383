"""The loop of a training: steps, validations, reports, files."""

from __future__ import annotations

import time
from collections.abc import Sized

import mlx.core as mx
from mlx import nn

from ...optim.optimizer import DistributedOptimizer
from .arguments import Arguments
from .batches import Batch, Batches
from .callbacks import Callback
from .saved import Position, Saved
from .step import CompiledStep, EagerStep, Loss, Measured, Step, finite
from .upstream import TrainUI, evaluate
from .window import Window, peak_gigabytes


class Training:
    """Trains one model on all ranks.

    Args:
        callback: of the user, or None.
    """

    def __init__(
        self,
        arguments: Arguments,
        model: nn.Module,
        optimizer: DistributedOptimizer,
        loss: Loss,
        batches: Batches,
        callback: Callback | None,
    ):
        self._arguments, self._args = arguments, arguments.upstream
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._world, self._batches = optimizer.world, batches
        self._callback = callback
        self._window = Window(self._world)
        self._ui = TrainUI(self._args.iters, rank=self._world.rank)
        self._saved = Saved(arguments, model, optimizer, batches, self._window)
        self._tokens = 0

    def prepare(self) -> None:
        """Put rank 0's trained parameters on all ranks, and plan who owns what."""
        parameters = self._model.trainable_parameters()
        if self._world.size > 1 and not self._optimizer.is_initialized:
            parameters = self._world.broadcast(parameters)
            self._model.update(parameters)
        self._optimizer.init(parameters)

    def run(
        self, train_dataset: Sized, val_dataset: Sized | None, *, compiled: bool
    ) -> None:
        """Train, from the beginning or from a checkpoint on."""
        done = self._resume()
        step = self._make_step(compiled=compiled)
        self._model.train()
        with self._ui:
            for _ in range(done):
                self._ui.advance()
            numbers = range(done + 1, self._args.iters + 1)
            rows = self._batches.training(train_dataset, self._args)
            for iteration, batch in zip(numbers, rows, strict=False):
                if val_dataset and self._validates(iteration):
                    self._validate(iteration, val_dataset)
                start = time.perf_counter()
                measured = self._take(step, batch, iteration)
                if mx.get_cache_memory() > self._args.clear_cache_threshold:
                    mx.clear_cache()
                self._window.add(measured, time.perf_counter() - start)
                self._ui.advance()
                self._report_and_save(iteration)
        self._world.print(f"saved {self._saved.save_weights()}")
        self._batches.leave_random_state()

    def _resume(self) -> int:
        """Return how many iterations are done."""
        arguments = self._arguments
        restarted = self._world.restarts > 0 and arguments.checkpoint_every > 0
        at = Position()
        if arguments.resume or restarted:
            at = self._saved.load()
            self._world.print(f"resumes after iteration {at.iteration}")
        self._tokens = at.tokens
        return at.iteration

    def _make_step(self, *, compiled: bool) -> Step:
        kind = CompiledStep if compiled else EagerStep
        count = self._args.grad_accumulation_steps
        return kind(self._model, self._optimizer, self._loss, count)

    def _take(self, step: Step, batch: Batch, iteration: int) -> Measured:
        count = self._args.grad_accumulation_steps
        if iteration <= self._args.iters - self._args.iters % count:
            return step(batch, is_last=iteration % count == 0)
        # Micro-batches after the last whole step move nothing.
        measured = Measured.of(*self._loss(self._model, *batch))
        mx.eval(measured)
        return measured

    def _validates(self, iteration: int) -> bool:
        args = self._args
        is_due = iteration % args.steps_per_eval == 0
        return is_due or iteration in (1, args.iters)

    def _validate(self, iteration: int, dataset: Sized) -> None:
        args, start = self._args, time.perf_counter()
        batches = len(dataset) // args.batch_size
        if args.val_batches != -1:
            batches = min(batches, args.val_batches)
        with self._ui.val_task(batches) as advance:
            loss = evaluate(
                model=self._model,
                dataset=dataset,
                loss=finite(self._loss),
                batch_size=args.batch_size,
                num_batches=args.val_batches,
                max_seq_length=args.max_seq_length,
                iterate_batches=self._batches.evaluation,
                progress_callback=advance,
            )
        self._model.train()
        seconds = time.perf_counter() - start
        self._ui.report_val(iteration, loss, seconds)
        if self._callback is not None:
            info = {"iteration": iteration - 1, "val_loss": loss, "val_time": seconds}
            self._callback.on_val_loss_report(info)

    def _report_and_save(self, iteration: int) -> None:
        args, every = self._args, self._arguments.save_every
        if iteration % args.steps_per_report == 0 or iteration == args.iters:
            self._report(iteration)
        if iteration % args.steps_per_save == 0:
            self._ui.report_save(self._saved.save_weights(iteration))
        if every and iteration % every == 0:
            self._saved.save(Position(iteration, self._tokens))

    def _report(self, iteration: int) -> None:
        report = self._window.report()
        self._tokens += report.tokens
        speed = report.tokens / report.seconds
        self._ui.report_train(iteration, report.loss, speed, self._tokens)
        if self._callback is not None:
            info = {
                "iteration": iteration,
                "train_loss": report.loss,
                "learning_rate": self._optimizer.learning_rate.item(),
                "iterations_per_second": report.steps / report.seconds,
                "tokens_per_second": speed,
                "trained_tokens": self._tokens,
                "peak_memory": peak_gigabytes(),
            }
            self._callback.on_train_loss_report(info)
