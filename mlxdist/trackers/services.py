"""TensorBoard, Weights & Biases, and SwanLab.

Each is a package of its own, imported when one is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ..launcher import environment
from .tracker import Tracker

_PROJECT = "mlxdist"


class MissingPackageError(ImportError):
    """The package of a tracker is not installed; the message names the extra."""


class Run(NamedTuple):
    """What a service needs to know of a run.

    Attributes:
        folder: of the run; its name is the run's.
        info: the contents of run.json; its "id" stays when a run is resumed.
        done: steps that the run has taken.
    """

    folder: Path
    info: Mapping[str, object]
    done: int


class TensorBoardTracker:
    """Event files in `RUN/tensorboard`, written by tensorboardX.

    A resumed run hides its earlier points of later steps.
    """

    def __init__(self, run: Run):
        module = _module("tensorboardX", "tensorboard")
        self._writer = module.SummaryWriter(
            str(run.folder / "tensorboard"),
            purge_step=run.done + 1,
            flush_secs=1,  # a job that is killed has all reports but the last ones
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases, which a resumed run continues.

    WANDB_MODE=offline keeps it in `RUN/wandb`, for `wandb sync`. WANDB_PROJECT and its
    other variables count.
    """

    def __init__(self, run: Run):
        module = _module("wandb", "wandb")
        self._run = module.init(
            project=environment.get("WANDB_PROJECT") or _PROJECT,
            name=run.folder.name,
            dir=str(run.folder),
            id=run.info["id"],
            resume="allow",
            config=dict(run.info),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


class SwanLabTracker:
    """An experiment of SwanLab, which a resumed run continues.

    SWANLAB_MODE=offline keeps it in `RUN/swanlog`, for `swanlab sync`; "local" is for
    `swanlab watch`.
    """

    def __init__(self, run: Run):
        module = _module("swanlab", "swanlab")
        self._run = module.init(
            project=environment.get("SWANLAB_PROJECT") or _PROJECT,
            name=run.folder.name,
            log_dir=str(run.folder / "swanlog"),
            id=run.info["id"],
            resume="allow",
            config=dict(run.info),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({k: v for k, v in values.items() if math.isfinite(v)}, step=step)

    def finish(self) -> None:
        self._run.finish()


_BY_NAME: dict[str, Callable[[Run], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "swanlab": SwanLabTracker,
}
NAMES = tuple(_BY_NAME)


def make(name: str, run: Run) -> Tracker:
    """Start the tracker of a name.

    Raises:
        MissingPackageError: its package is not installed.
        Exception: what the service raises.
    """
    return _BY_NAME[name](run)


def _module(name: str, extra: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"the tracker {extra!r} needs the package {name}: pip install "
            f"'mlxdist[{extra}]' ({error})"
        ) from error
