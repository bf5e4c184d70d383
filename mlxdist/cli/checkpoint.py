"""`mlxdist checkpoint`: show, verify or consolidate checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..launcher.standard_streams import print_error
from ..launcher.visible_text import visible
from .options import Commands, add_command
from .plain_text import plain

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..checkpoint.verify import CheckpointInfo

# MLX and rich are imported where they are needed, so that other commands start faster.

_EPILOG = """\
examples:
  mlxdist checkpoint show runs/lm/checkpoints
  mlxdist checkpoint verify runs/lm/checkpoints
  mlxdist checkpoint consolidate runs/lm/checkpoints --to plain
"""


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "checkpoint",
        run=_show,  # replaced by each action's own
        help="show, verify or consolidate checkpoints",
        description="Show, verify or convert checkpoints that save_checkpoint wrote.",
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="list them, without reading their data")
    verify = actions.add_parser(
        "verify", help="read all their data and compare checksums"
    )
    merge = actions.add_parser(
        "consolidate",
        help="write the files that a single MLX process loads",
        description="Writes model.safetensors, for model.load_weights, and "
        "optimizer.safetensors, the optimizer's own state. Takes little memory.",
    )
    for action, run in ((show, _show), (verify, _verify), (merge, _consolidate)):
        action.add_argument("folder", type=Path, metavar="FOLDER")
        action.add_argument(
            "--step", type=int, metavar="S", help="only the checkpoint of this step"
        )
        action.set_defaults(run=run)
    merge.add_argument("--to", type=Path, required=True, metavar="NEW_FOLDER")


def _show(parsed: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from ..checkpoint import verify

    checkpoints = verify.list_checkpoints(parsed.folder, parsed.step)
    table = Table(box=None, pad_edge=False)
    for name in ("name", "saved", "ranks", "shard", "optimizer", "MB", "state"):
        justify: Literal["left", "right"]
        justify = "right" if name in ("ranks", "MB") else "left"
        may_wrap = name in ("optimizer", "saved")
        table.add_column(name, justify=justify, no_wrap=not may_wrap)
    for checkpoint in checkpoints:
        table.add_row(*map(plain, _row(checkpoint)))
    Console(highlight=False).print(table)
    for checkpoint in checkpoints:
        if checkpoint.problem:
            print(visible(f"{checkpoint.save.name}: {checkpoint.problem}"))
    return int(all(checkpoint.problem for checkpoint in checkpoints))


def _row(checkpoint: CheckpointInfo) -> list[str]:
    manifest = checkpoint.manifest
    if manifest is None:
        return [checkpoint.save.name, "", "", "", "", "", "damaged"]
    from ..checkpoint import verify

    optimizers = [leaf.name.rpartition(".")[2] for leaf in manifest.optimizer]
    return [
        checkpoint.save.name,
        manifest.saved_at,
        str(manifest.world_size),
        manifest.strategy,
        ", ".join([" + ".join(optimizers), *verify.kept(manifest)]),
        f"{manifest.nbytes / 1e6:,.1f}",
        "damaged" if checkpoint.problem else "whole",
    ]


def _verify(parsed: argparse.Namespace) -> int:
    from ..checkpoint import verify

    checkpoints = verify.list_checkpoints(parsed.folder, parsed.step)
    damaged = 0
    nbytes = sum(each.manifest.nbytes for each in checkpoints if each.manifest)
    with _progress() as bar:
        task = bar.add_task("verifying", total=nbytes)
        for checkpoint in checkpoints:
            problems = list(
                verify.verify(parsed.folder, checkpoint, lambda n: bar.advance(task, n))
            )
            damaged += bool(problems)
            for line in problems or ["good"]:
                text = plain(visible(f"{checkpoint.save.name}: {line}"))
                bar.console.print(text, soft_wrap=True)
    return int(damaged > 0)


def _consolidate(parsed: argparse.Namespace) -> int:
    from ..checkpoint import mlx_files, verify

    checkpoints = verify.list_checkpoints(parsed.folder, parsed.step)
    good = next((c for c in checkpoints if c.manifest and not c.problem), None)
    if good is None or good.manifest is None:
        raise ValueError(f"no good checkpoint: {checkpoints[0].problem}")
    for damaged in checkpoints[: checkpoints.index(good)]:
        print_error(f"skipped {damaged.save.name}: {damaged.problem}")
    with _progress() as bar:
        nbytes = sum(array.nbytes for array in good.manifest.arrays)
        task = bar.add_task("writing", total=nbytes)
        files = mlx_files.consolidate(
            parsed.folder, good.save, parsed.to, lambda n: bar.advance(task, n)
        )
    print(f"{good.save.name} as plain MLX files:")
    for file in files:
        print(visible(f"  {file}"))
    return 0


def _progress() -> Progress:
    """Return a progress bar of bytes, on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TransferSpeedColumn,
    )

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True, highlight=False))
