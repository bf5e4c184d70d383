"""`RunLog`: what a training run reports, averaged over its ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import get_args

import mlx.core as mx

from ..comm.agreement import agree, agree_on_success
from ..layout.entries import fingerprint
from ..optim.optimizer import DistributedOptimizer
from ..world.join import current
from ..world.world import World
from .interval import Interval
from .outputs import Outputs
from .progress import Kind, Progress
from .report import Report, exchange
from .run_info import Info, run_info
from .tracker import Tracker
from .window import Window

_SUMS = ("tokens_per_second", "trained_tokens")


class RunLog:
    """Reports of a run: averaged over the ranks, and written by rank 0.

    Every rank makes one and calls the same methods. A training loop calls `step` and
    `validation`. mlx-lm calls `on_train_loss_report` and `on_val_loss_report`: it is
    one of its `TrainingCallback`s, whose keys a report has, with "step_time" and
    "wait_time" (seconds a step; see `step`) added.

    A report costs two messages of some 100 bytes to each rank, and no rank waits for
    rank 0 to write it. A value that is nan, infinite or missing on some ranks is left
    out of the mean, with a warning, and the line in metrics.jsonl names these ranks
    under "left_out".

    Args:
        folder: of the run. Rank 0 writes `metrics.jsonl` and `run.json` there; None
            writes neither.
        world: the ranks; those of the optimizer, or of `mlxdist.init()`, where it is
            None.
        optimizer: reports its learning rate, and writes its options, its plan and its
            memory to `run.json`.
        trackers: where reports go as well: "tensorboard", "wandb" and "swanlab", or
            objects with the methods of `Tracker`.
        config: of the user, for `run.json` and the trackers.
        steps: of the whole run; the last one always reports.
        every: steps from one report of `step` to the next.
        done: steps that the run has taken, such as `load_checkpoint(...).step`. It
            continues the files of the folder; what they have of later steps is dropped.
        progress: "line" shows one on rank 0, "ranks" one and a row for each rank, None
            nothing.
        title: of the progress line.

    Raises:
        MismatchError: on all ranks, where `steps`, `every` or `done` differ, one of
            them or `progress` is wrong, or rank 0 can't write to the folder, or has not
            the package of a tracker. A tracker that can't start for another reason is
            left out, with a warning.
    """

    def __init__(
        self,
        folder: str | Path | None,
        *,
        world: World | None = None,
        optimizer: DistributedOptimizer | None = None,
        trackers: Iterable[str | Tracker] = (),
        config: Mapping[str, object] | None = None,
        steps: int | None = None,
        every: int = 10,
        done: int = 0,
        progress: Kind | None = "line",
        title: str = "",
    ):
        if world is None:
            world = current() if optimizer is None else optimizer.world
        self._world, self._optimizer = world, optimizer
        self._steps, self._every, self._done = steps, every, done
        self._config = dict(config or {})
        self._hosts = self._agree_on_reports(progress)
        self._outputs = agree_on_success(
            world.control,
            "RunLog",
            partial(self._open, folder, trackers, progress, title),
        )
        # Ranks add their tokens up. Rank 0 begins with those of earlier jobs.
        tokens = self._outputs.trained_tokens if self._outputs else 0.0
        self._window = Window(tokens)
        self._interval = Interval(world.recorder.waits)

    def step(
        self,
        loss: float | mx.array,
        *,
        tokens: float | mx.array | None = None,
        weight: float | mx.array | None = None,
        **values: float | mx.array,
    ) -> Report | None:
        """Count an optimizer step; report each `every` of them, and the last one.

        A report has "train_loss", the mean over the ranks and over the steps since the
        last report; "step_time", seconds from one step to the next, and "wait_time",
        those of them in which the rank waited for others: the slowest rank waits least.
        What MLX itself waits for, as in a compiled step, is not known: where nothing
        else waits there is no "wait_time". Both have a mean, a minimum and a maximum,
        and so has "peak_memory" in GB.

        Args:
            loss: the mean over this rank's rows. Arrays are evaluated.
            tokens: that this rank has trained on in this step.
            weight: how much `loss` counts: `tokens`, or else 1, where it is None. 0
                leaves it out, even nan.
            values: others, the last ones of which are averaged over the ranks. "step",
                "time", "left_out" and the names above are the report's own.

        Returns:
            A report, the same on all ranks, or None where none was due.

        Raises:
            MismatchError: on all ranks, if one has a value that is no number, or
                weights that are negative or not finite.
        """
        self._done += 1
        self._window.add(loss, tokens, weight, values)
        if self._done % self._every and self._done != self._steps:
            if self._outputs is not None:
                self._outputs.advance(self._done)
            return None
        steps, elapsed = self._window.steps, self._interval.elapsed
        local, total = self._window.take(elapsed)
        local |= self._common(steps, elapsed)
        report = self._report(self._done, local, weight=total, sums=_SUMS)
        self._interval.restart()
        return report

    def validation(
        self,
        loss: float | mx.array,
        *,
        seconds: float | None = None,
        weight: float | mx.array | None = None,
        **values: float | mx.array,
    ) -> Report:
        """Report a validation, after the last step.

        Args:
            loss: "val_loss", the mean over this rank's rows.
            seconds: "val_time", which it took.
            weight: how much `loss` and `values` count, such as the rank's rows; 1 where
                it is None, and 0 leaves them out.
            values: others.

        Returns:
            The report, the same on all ranks.

        Raises:
            MismatchError: on all ranks, if one has a value that is no number.
        """
        local: dict[str, object] = {"val_loss": loss, **values}
        if seconds is not None:
            local["val_time"] = seconds
        weight = 1.0 if weight is None else weight
        with self._interval.paused():
            return self._report(self._done, local, weight=weight)

    def paused(self) -> AbstractContextManager[None]:
        """A `with` whose body is no part of the steps' times, such as a validation."""
        return self._interval.paused()

    def on_train_loss_report(self, train_info: Mapping[str, object]) -> Report:
        """Report what mlx-lm's trainer does: "iteration", "train_loss" and others.

        It has added the losses and the tokens of all ranks up already. "step_time" is
        the inverse of "iterations_per_second", if not given, and so has no validation.
        """
        local = dict(train_info)
        step = int(local.pop("iteration"))  # type: ignore[call-overload]
        common = self._common(max(1, step - self._done), self._interval.elapsed)
        rate = local.get("iterations_per_second")
        if isinstance(rate, float) and rate > 0:
            common["step_time"] = 1 / rate
        report = self._report(step, {**common, **local})
        self._done = step
        self._interval.restart()
        return report

    def on_val_loss_report(self, val_info: Mapping[str, object]) -> Report:
        """Report a validation of mlx-lm's trainer: "val_loss" and "val_time"."""
        local = dict(val_info)
        step = int(local.pop("iteration"))  # type: ignore[call-overload]
        with self._interval.paused():
            return self._report(step, local)

    def finish(self) -> None:
        """Close files and trackers, and end the progress. Each rank by itself."""
        if self._outputs is not None:
            self._outputs.finish()
            self._outputs = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def _agree_on_reports(self, progress: Kind | None) -> list[str]:
        """Compare over the ranks when reports are due; return the ranks' hosts."""
        lines = [f"steps {self._steps}, every {self._every}, done {self._done}"]
        problem = None
        if not isinstance(self._every, int) or self._every < 1:
            problem = f"every must be positive: {self._every!r}"
        if not isinstance(self._done, int) or self._done < 0:
            problem = f"done must be the steps taken, 0 or more: {self._done!r}"
        if progress not in (None, *get_args(Kind)):
            problem = f"progress must be 'line', 'ranks' or None: {progress!r}"
        control = self._world.control
        agree(control, "RunLog", fingerprint(lines), lambda: lines, problem=problem)
        hosts = control.all_gather_bytes(self._world.host.encode())
        return [host.decode() for host in hosts]

    def _open(
        self,
        folder: str | Path | None,
        trackers: Iterable[str | Tracker],
        progress: Kind | None,
        title: str,
    ) -> Outputs | None:
        if not self._world.is_root:
            return None
        shown = None
        if progress is not None:
            shown = Progress(
                steps=self._steps,
                done=self._done,
                hosts=self._hosts,
                kind=progress,
                title=title,
            )
        path = None if folder is None else Path(folder)
        return Outputs(path, self._info, trackers, self._done, shown)

    def _info(self) -> Info:
        return run_info(self._world, self._hosts, self._optimizer, self._config)

    def _common(self, steps: int, elapsed: float) -> dict[str, object]:
        """Return what each report of training has."""
        values: dict[str, object] = {
            "step_time": elapsed / steps,
            "peak_memory": mx.get_peak_memory() / 1e9,
        }
        waited = self._interval.waited
        if waited or self._world.size == 1:
            values["wait_time"] = waited / steps
        if self._optimizer is not None:
            values["learning_rate"] = self._optimizer.learning_rate
        return values

    def _report(
        self,
        step: int,
        local: Mapping[str, object],
        *,
        weight: float | mx.array = 1.0,
        sums: tuple[str, ...] = (),
    ) -> Report:
        control = self._world.control
        report = exchange(control, step, local, weight=weight, sums=sums)
        if self._outputs is not None:
            self._outputs.write(report)
        return report
