"""What can be found wrong before anything is trained, on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlx import nn
from mlx.utils import tree_flatten

from ...arrays.trees import all_parameters
from ...comm.agreement import MismatchError, agree
from ...layout.entries import fingerprint
from ...optim.optimizer import DistributedOptimizer
from ...world.world import World
from .upstream import TrainingArgs

_LEAST = {
    "grad_accumulation_steps": 1,
    "steps_per_report": 1,
    "steps_per_eval": 1,
    "steps_per_save": 1,
    "max_seq_length": 2,  # a token, and the next one
    "iters": 0,
    "val_batches": -1,  # all of them
    "checkpoint_every": 0,
}
_NOTHING_TO_TRAIN = (
    "the model has no trainable parameters: with LoRA, lora_parameters: keys must name "
    "layers of the model; in Python, unfreeze some"
)


class RefusedError(MismatchError):
    """Options, files or data can't work. Raised on all ranks, before training."""


@contextmanager
def refusing() -> Iterator[None]:
    """While in it, what the ranks can't agree on is a `RefusedError`."""
    try:
        yield
    except MismatchError as error:
        raise RefusedError(str(error)) from error.__cause__


@dataclass(frozen=True)
class Arguments:
    """The arguments of `train` that all ranks must agree on.

    Attributes:
        upstream: mlx-lm's own.
        training, validation: rows of the two datasets; None without a dataset.
    """

    upstream: TrainingArgs
    training: int | None
    validation: int | None
    checkpoint_every: int
    resume: bool

    @classmethod
    def of(
        cls,
        args: TrainingArgs,
        train_dataset: Sized,
        val_dataset: Sized | None,
        checkpoint_every: int,
        resume: bool,
    ) -> Arguments:
        """Read the sizes of the datasets."""
        validation = None if not val_dataset else len(val_dataset)
        return cls(args, len(train_dataset), validation, checkpoint_every, resume)

    @property
    def folder(self) -> Path:
        """mlxdist's own files, beside mlx-lm's."""
        return Path(self.upstream.adapter_file).parent / "mlxdist"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def order(self) -> dict[str, int | None]:
        """What the order of the data depends on, besides the random state."""
        rows = {"training rows": self.training, "validation rows": self.validation}
        return {"batch_size": self.upstream.batch_size, **rows}

    @property
    def save_every(self) -> int:
        """Micro-batches from one checkpoint to the next: whole steps; 0 for none."""
        count: int = self.upstream.grad_accumulation_steps
        return -(-self.checkpoint_every // count) * count

    def agree(
        self, world: World, model: nn.Module, optimizer: DistributedOptimizer
    ) -> None:
        """Compare the arguments over the ranks.

        Raises:
            MismatchError: on all ranks, where they differ or can't work.
        """
        problem = next(self._problems(world, model, optimizer), None)
        given = dict(vars(self.upstream))
        if not (self.checkpoint_every or self.resume):
            del given["adapter_file"]  # which rank 0 alone writes
        lines = [f"{name} = {value}" for name, value in given.items()]
        lines += [f"{self.training} training rows", f"{self.validation} to validate"]
        lines += [f"checkpoint_every = {self.checkpoint_every}, {self.resume=}"]
        lines += [
            f"{path} {array.dtype}{list(array.shape)}"
            for path, array in sorted(all_parameters(model).items())
        ]
        agree(
            world.control,
            "mlx_lm.train",
            fingerprint(lines),
            lambda: lines,
            problem=problem,
            remedy="Give all ranks the same model, data and options",
        )

    def _problems(
        self, world: World, model: nn.Module, optimizer: DistributedOptimizer
    ) -> Iterator[str]:
        args = self.upstream
        if not tree_flatten(model.trainable_parameters()):
            yield _NOTHING_TO_TRAIN
        sets = [("train", self.training), ("valid", self.validation)]
        for problem in (
            rows_problem(args.batch_size, world.size),
            *(dataset_problem(name, rows, args.batch_size) for name, rows in sets),
        ):
            if problem is not None:
                yield problem
        given = {**vars(args), "checkpoint_every": self.checkpoint_every}
        if self.validation is None:  # and 0 is as good as any
            del given["steps_per_eval"]
        for name, least in _LEAST.items():
            if given.get(name, least) < least:
                yield f"{name}={given[name]}, wanted {least} or more"
        if self.checkpoint_every and not self.resume and any_files(self.checkpoints):
            yield (
                f"{self.checkpoints} has checkpoints of an earlier training: resume "
                "it, remove them, or choose another folder"
            )
        if optimizer.options.accumulate != 1:
            yield (
                f"the optimizer has accumulate={optimizer.options.accumulate}: leave "
                "it out, and set grad_accumulation_steps of mlx-lm"
            )


def any_files(folder: Path) -> bool:
    """Return whether there is a folder with anything in it."""
    return folder.is_dir() and any(folder.iterdir())


def rows_problem(batch_size: int, ranks: int) -> str | None:
    """Return why a batch can't be shared by the ranks, or None."""
    if batch_size >= 1 and batch_size % ranks == 0:
        return None
    wanted = -(-max(1, batch_size) // ranks) * ranks
    return (
        f"batch_size={batch_size} is the rows of all ranks together, and {ranks} ranks "
        f"can't share it equally: set batch_size={wanted}, or another multiple of "
        f"{ranks}"
    )


def dataset_problem(name: str, rows: int | None, batch_size: int) -> str | None:
    """Return why a dataset is too small, or None."""
    if rows is None or rows >= batch_size:
        return None
    return (
        f"the {name} dataset has {rows} rows, fewer than one batch of batch_size="
        f"{batch_size}: add rows, or set a smaller batch_size"
    )
