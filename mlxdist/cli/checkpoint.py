"""`mlxdist checkpoint`: look at checkpoints, verify them, make plain MLX files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# MLX and rich are imported by the action that needs them: others start faster.

_EPILOG = """\
examples:
  mlxdist checkpoint show runs/lm/checkpoints
  mlxdist checkpoint verify runs/lm/checkpoints
  mlxdist checkpoint consolidate runs/lm/checkpoints --to plain
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "checkpoint",
        help="show, verify or consolidate checkpoints",
        description="Look at the checkpoints that save_checkpoint wrote.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="list them, with what is seen at a glance")
    verify = actions.add_parser("verify", help="read all of them, compare checksums")
    merge = actions.add_parser(
        "consolidate",
        help="write the files that a single MLX process loads",
        description="Writes model.safetensors, for model.load_weights, and "
        "optimizer.safetensors, the optimizer's own state. Takes little memory.",
    )
    for action, run in ((show, _show), (verify, _verify), (merge, _consolidate)):
        action.add_argument("folder", type=Path, metavar="FOLDER")
        action.add_argument("--step", type=int, metavar="S", help="of this step alone")
        action.set_defaults(run=run)
    merge.add_argument("--to", type=Path, required=True, metavar="NEW_FOLDER")


def _show(parsed: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from mlxdist.checkpoint import verify as inspection

    found = inspection.look(parsed.folder, parsed.step)
    table = Table(box=None, pad_edge=False)
    for name in ("name", "saved", "ranks", "shard", "optimizer", "MB", "state"):
        right = name in ("ranks", "MB")
        whole = name not in ("optimizer", "saved")
        table.add_column(name, justify="right" if right else "left", no_wrap=whole)
    for one in found:
        table.add_row(*_row(one))
    Console(highlight=False).print(table)
    for one in found:
        if one.problem:
            print(f"{one.save.name}: {one.problem}")
    return int(all(one.problem for one in found))


def _row(one: Any) -> list[str]:
    if one.manifest is None:
        return [one.save.name, "", "", "", "", "", "damaged"]
    manifest = one.manifest
    names = [leaf.name.rpartition(".")[2] for leaf in manifest.optimizer]
    return [
        one.save.name,
        manifest.saved_at,
        str(manifest.world_size),
        manifest.strategy,
        " + ".join(names),
        f"{manifest.nbytes / 1e6:,.1f}",
        "damaged" if one.problem else "whole",
    ]


def _verify(parsed: argparse.Namespace) -> int:
    from mlxdist.checkpoint import verify as inspection

    found = inspection.look(parsed.folder, parsed.step)
    damaged = 0
    nbytes = sum(one.manifest.nbytes for one in found if one.manifest)
    with _progress() as bar:
        task = bar.add_task("verifying", total=nbytes)
        for one in found:
            wrong = list(
                inspection.verify(parsed.folder, one, lambda n: bar.advance(task, n))
            )
            damaged += bool(wrong)
            for problem in wrong or ["good"]:
                bar.console.print(f"{one.save.name}: {problem}", soft_wrap=True)
    return int(damaged > 0)


def _consolidate(parsed: argparse.Namespace) -> int:
    from mlxdist.checkpoint import mlx_files as plain
    from mlxdist.checkpoint import verify as inspection

    found = inspection.look(parsed.folder, parsed.step)
    good = next((one for one in found if one.manifest and not one.problem), None)
    if good is None or good.manifest is None:
        raise ValueError(f"no good checkpoint: {found[0].problem}")
    for one in found[: found.index(good)]:
        print(f"passed over {one.save.name}: {one.problem}", file=sys.stderr)
    with _progress() as bar:
        nbytes = sum(array.nbytes for array in good.manifest.arrays)
        task = bar.add_task("writing", total=nbytes)
        files = plain.consolidate(
            parsed.folder, good.save, parsed.to, lambda n: bar.advance(task, n)
        )
    print(f"{good.save.name} as plain MLX files:")
    for file in files:
        print(f"  {file}")
    return 0


def _progress() -> Any:
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
