"""What the command reports to: a run's folder, and the services of `report_to`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ...optim.optimizer import DistributedOptimizer
from ...trackers import RunLog

Info = dict[str, float]


class Callback(Protocol):
    """mlx-lm's `TrainingCallback`."""

    def on_train_loss_report(self, train_info: Info, /) -> object: ...

    def on_val_loss_report(self, val_info: Info, /) -> object: ...


class Logged:
    """Writes a run's folder, and passes reports on. Called by all ranks.

    Args:
        folder: of metrics.jsonl and run.json.
        config: of the user.
        other: mlx-lm's own callback, or None.
    """

    def __init__(
        self,
        folder: Path,
        optimizer: DistributedOptimizer,
        config: Mapping[str, object],
        other: Callback | None,
    ):
        self._folder, self._optimizer, self._config = folder, optimizer, config
        self._other = other
        self._log: RunLog | None = None

    def on_train_loss_report(self, train_info: Info) -> None:
        before = int(train_info["iteration"]) - 1
        self._log_from(before).on_train_loss_report(train_info)
        if self._other is not None:
            self._other.on_train_loss_report(train_info)

    def on_val_loss_report(self, val_info: Info) -> None:
        self._log_from(int(val_info["iteration"])).on_val_loss_report(val_info)
        if self._other is not None:
            self._other.on_val_loss_report(val_info)

    def _log_from(self, done: int) -> RunLog:
        """Return the log; at the first report, drop lines that a resumed run repeats.

        Args:
            done: iterations before that report.
        """
        if self._log is None:
            self._log = RunLog(
                self._folder,
                optimizer=self._optimizer,
                config=self._config,
                done=done,
                progress=None,
            )
        return self._log

    def finish(self) -> None:
        """Close the files."""
        if self._log is not None:
            self._log.finish()
