"""`python -m mlxdist.integrations.mlx_lm lora`: mlx-lm's command on N ranks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial, wraps
from itertools import compress
from pathlib import Path
from typing import Any

from mlx.optimizers import Optimizer

from ...checkpoint import CheckpointError
from ...comm.agreement import agree_on_success
from ...world.join import init
from ...world.world import World
from .arguments import RefusedError, dataset_problem, refusing
from .batches import Batches
from .callbacks import Callback, Logged
from .data_files import Rows
from .options import DEFAULTS, add_options, check, wrap_optimizer
from .step import finite
from .trainer import train
from .upstream import (
    default_loss,
    evaluate,
    fitting_output,
    iterate_batches,
    lora,
    replaced,
)

Function = Callable[..., Any]  # one of mlx-lm's
_USAGE = "mlxdist run -n N -m mlxdist.integrations.mlx_lm lora [--config FILE] ..."
_WRONG_COMMAND_LINE = 2


def main() -> None:
    """Run `mlx_lm.lora` with the arguments of this process, on all ranks.

    Exits with code 2 on all ranks where the arguments, the files or the data are wrong.
    """
    world = init()
    with fitting_output(), _stopping_all(world):
        read = partial(_read, world)
        with refusing():
            args = agree_on_success(world.control, "mlx_lm lora", read)
        OnAllRanks(args, world).run()


@contextmanager
def _stopping_all(world: World) -> Iterator[None]:
    """Print what all ranks have found wrong, once, and end all of them.

    Errors of the training itself are raised, so that the job may be started again.
    """
    try:
        yield
    except (RefusedError, CheckpointError) as error:
        if world.is_root:
            print(f"mlx_lm lora: {error}", file=sys.stderr, flush=True)
        world.barrier()  # mpirun ends the others as soon as one has exited
        sys.exit(_WRONG_COMMAND_LINE)


def _read(world: World) -> argparse.Namespace:
    """Return the options: mlx-lm's and those of `add_options`, from flags and YAML."""
    command = sys.argv.pop(1) if len(sys.argv) > 1 else "nothing"
    if command != "lora":
        raise ValueError(f"found {command}, wanted lora: {_USAGE}")
    read: list[argparse.Namespace] = []
    with ExitStack() as stack:
        if not world.is_root:  # rank 0 alone prints help and errors
            devnull = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(devnull))
            stack.enter_context(redirect_stderr(devnull))
        stack.enter_context(
            replaced(
                lora,
                build_parser=_with_options(lora.build_parser),
                CONFIG_DEFAULTS={**lora.CONFIG_DEFAULTS, **DEFAULTS},
                run=read.append,
            )
        )
        try:
            lora.main()
        except SystemExit:
            world.barrier()
            raise
        except AttributeError as error:
            raise ValueError(
                "the file of --config has no lines such as batch_size: 8"
            ) from error
    check(read[0], world.size)
    return read[0]


def _with_options(
    build_parser: Callable[[], argparse.ArgumentParser],
) -> Callable[[], argparse.ArgumentParser]:
    """Return mlx-lm's function with our options added to what it returns."""

    @wraps(build_parser)
    def build() -> argparse.ArgumentParser:
        parser = build_parser()
        parser.prog = _USAGE.partition(" [")[0]
        # mlx-lm has two flags with a default that hides the line of the YAML file.
        parser.set_defaults(**dict.fromkeys(lora.CONFIG_DEFAULTS))
        add_options(parser)
        return parser

    return build


class OnAllRanks:
    """mlx-lm's functions as its command calls them, on ranks that work together.

    Args:
        args: of the command.
    """

    def __init__(self, args: argparse.Namespace, world: World):
        self._args, self._world = args, world

    def run(self) -> None:
        """Call mlx-lm's `run`."""
        with replaced(
            lora,
            load=self._agreed(lora.load),
            load_dataset=self._agreed(self._checked(lora.load_dataset)),
            load_adapters=self._agreed(lora.load_adapters),
            get_reporting_callbacks=self._agreed(
                self._on_root(lora.get_reporting_callbacks)
            ),
            save_config=self._on_root(lora.save_config),
            train_model=partial(self._train_model, lora.train_model),
            evaluate=self._evaluate,
        ):
            lora.run(self._args)

    def _agreed(self, function: Function) -> Function:
        """A function that fails on all ranks where it fails on one."""

        @wraps(function)
        def call(*arguments: object, **keywords: object) -> object:
            action = partial(function, *arguments, **keywords)
            with refusing():
                return agree_on_success(self._world.control, function.__name__, action)

        return call

    def _on_root(self, function: Function) -> Function:
        """A function that writes files, or to a service: rank 0 alone calls it."""

        @wraps(function)
        def call(*arguments: object, **keywords: object) -> object:
            return function(*arguments, **keywords) if self._world.is_root else None

        return call

    def _checked(self, load_dataset: Function) -> Function:
        """mlx-lm's function, which refuses datasets that can't be trained on."""

        @wraps(load_dataset)
        def load(*arguments: object) -> object:
            names = ("train", "valid", "test")
            sets = list(map(Rows, names, load_dataset(*arguments)))
            is_used = (self._args.train, self._args.train, self._args.test)
            for rows in filter(len, compress(sets, is_used)):
                problem = dataset_problem(rows.name, len(rows), self._args.batch_size)
                if problem is not None:
                    raise ValueError(problem)
                rows.process(rows[0])  # fails where chats have no template
            return sets

        return load

    def _train_model(self, prepare: Function, *arguments: object) -> None:
        """Call mlx-lm's function up to its call of `train`, and train then."""
        given: dict[str, Any] = {}
        with replaced(lora, train=given.update):
            self._agreed(prepare)(*arguments)
        self._train(**given)

    def _train(
        self,
        optimizer: Optimizer,
        training_callback: Callback | None,
        **arguments: Any,
    ) -> None:
        args, world = self._args, self._world
        # mlx-lm drops this one.
        arguments["args"].clear_cache_threshold = args.clear_cache_threshold
        if not world.is_root:  # ranks draw dropout of their own
            world.seed(args.seed)
        wrapped = self._agreed(wrap_optimizer)(optimizer, args, world)
        folder = Path(args.adapter_path) / "mlxdist"
        logged = Logged(folder, wrapped, vars(args), training_callback)
        try:
            train(
                optimizer=wrapped,
                training_callback=logged,
                compiled=args.compiled,
                checkpoint_every=args.checkpoint_every,
                resume=args.resume,
                **arguments,
            )
        finally:
            logged.finish()

    def _evaluate(self, **arguments: Any) -> Any:
        batches = Batches(iterate_batches, self._world)
        return evaluate(
            loss=finite(default_loss), iterate_batches=batches.evaluation, **arguments
        )
