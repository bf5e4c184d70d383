"""How fast, and in how much memory, are checkpoints saved and loaded?

    mlxdist bench -n 2 checkpoint --json benchmarks/results/checkpoint.json

AdamW in float32, sharded, on 2 ranks, compared with the disk's own speed: all ranks
write and read as many bytes in blocks of 4 MiB, each rank a file of its own, with and
without the page cache. Writes end with fsync. Before a read the page cache is dropped,
which needs root. Memory is the growth of a rank's peak resident memory during the call;
for `consolidate`, it is the peak of the command over the peak of one that only lists
the checkpoints. Linux only, because it reads /proc.
"""

from __future__ import annotations

import argparse
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from rich.console import Console

import mlxdist
from mlxdist.launcher.environment import without_mpi

LEGEND = """\
median s: seconds for all ranks, lower is better; GB/s: bytes of the checkpoint over it,
higher is better. Disk: as many bytes without mlxdist, the limit. In brackets: 95%
interval over the rounds."""
RANKS = 2
BLOCK = 4 * 2**20  # bytes
WIDTH = 1024
LAYER = 12 * WIDTH * WIDTH  # parameters of a transformer layer
PAIRS = [
    ("disk, written", "save"),
    ("disk, written through the cache", "save"),
    ("disk, read", "load"),
    ("disk, read through the cache", "load"),
]


def main() -> None:
    args = parse_arguments()
    world = mlxdist.init()
    console = common.make_console() if world.is_root else None
    with common.shared_folder(world, args.folder) as folder:
        result = measure(world, args, folder, console)
    if console is not None:
        show(console, result)
        common.write_json(args.json, __doc__, result, world.size)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--parameters", type=float, default=200, help="in millions")
    common.add_rounds(parser, default=5)
    common.add_folder(parser)
    args = parser.parse_args()
    if args.quick:
        args.parameters, args.rounds = 20, 2
    return args


def measure(
    world: mlxdist.World,
    args: argparse.Namespace,
    folder: Path,
    console: Console | None,
) -> common.Result:
    parameters = make_parameters(args.parameters * 1e6)
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=True)
    optimizer.init(parameters)
    mx.eval(parameters, optimizer.state)
    sizes = [leaf.nbytes for _, leaf in tree_flatten(parameters)]
    state = optimizer.describe().state_bytes
    rank_bytes = sum(sizes) // world.size + state
    saves = folder / "saves"
    steps = iter(range(1, 1000))

    def save() -> None:
        mlxdist.save_checkpoint(saves, next(steps), parameters, optimizer, keep=1)

    def load() -> None:
        mlxdist.load_checkpoint(saves, parameters, optimizer)

    save()
    memory = {"save": peak_growth(save), "load": peak_growth(load)}
    with DiskFile(folder / f"plain-{world.rank}", rank_bytes) as disk:
        contenders = disk_contenders(disk) | {"save": save, "load": load}
        total = len(contenders) * (args.rounds + 1)
        with common.show_progress(console, total) as progress:
            samples = common.interleave(
                world,
                contenders,
                rounds=args.rounds,
                before=drop_page_cache,
                progress=progress,
            )
    world.barrier()
    if world.is_root:
        memory["consolidate"] = consolidate(saves, folder / "one")
    return {
        "bytes": rank_bytes * world.size,
        "parameters": sum(sizes) // 4,
        "largest array": max(sizes),
        "share of a rank": sum(sizes) + state,
        "memory": memory,
        **common.record(samples, PAIRS),
    }


def make_parameters(count: float) -> dict[str, Any]:
    """Return the matrices of a transformer: layers of width 1024, and an embedding."""
    layers = int(count * 0.9) // LAYER
    rows = max(1, (int(count) - layers * LAYER) // WIDTH)
    shapes = {"query": 3 * WIDTH, "out": WIDTH, "up": 4 * WIDTH, "down": 4 * WIDTH}
    tree = {
        "blocks": [
            {name: mx.random.normal((rows, WIDTH)) for name, rows in shapes.items()}
            for _ in range(layers)
        ],
        "embedding": mx.random.normal((rows, WIDTH)),
    }
    mx.random.seed(0)
    return dict(mlxdist.init().broadcast(tree))


class DiskFile:
    """A file of plain blocks, to measure the disk without mlxdist."""

    def __init__(self, path: Path, nbytes: int):
        self._path, self._blocks = path, nbytes // BLOCK
        self._buffer = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT needs it
        self._buffer[:] = np.random.default_rng(0).bytes(BLOCK)

    def __enter__(self) -> DiskFile:
        self.write(direct=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink()

    def write(self, *, direct: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT * direct
        file = os.open(self._path, flags)
        for _ in range(self._blocks):
            os.write(file, self._buffer)
        os.fsync(file)
        os.close(file)

    def read(self, *, direct: bool) -> None:
        file = os.open(self._path, os.O_RDONLY | os.O_DIRECT * direct)
        while os.readv(file, [self._buffer]):
            continue
        os.close(file)


def disk_contenders(disk: DiskFile) -> dict[str, Callable[[], None]]:
    return {
        "disk, written": lambda: disk.write(direct=True),
        "disk, written through the cache": lambda: disk.write(direct=False),
        "disk, read": lambda: disk.read(direct=True),
        "disk, read through the cache": lambda: disk.read(direct=False),
    }


def drop_page_cache() -> None:
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")


def peak_growth(call: Callable[[], None]) -> int:
    """Return the bytes by which a call's peak exceeds the resident memory before it."""
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    call()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    field = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert field, f"/proc/self/status has no {name}"
    return 1024 * int(field[1])


def consolidate(saves: Path, target: Path) -> int:
    """Return the peak bytes of consolidating, over a command that only lists saves."""
    checkpoint = [sys.executable, "-m", "mlxdist.cli", "checkpoint"]
    commands = (
        [*checkpoint, "show", str(saves)],
        [*checkpoint, "consolidate", str(saves), "--to", str(target)],
    )
    peaks = []
    for command in commands:
        environment = without_mpi(os.environ)
        subprocess.run(command, check=True, capture_output=True, env=environment)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        peaks.append(usage.ru_maxrss * 1024)  # of the largest child so far
    shutil.rmtree(target)
    return peaks[1] - peaks[0]


def show(console: Console, result: common.Result) -> None:
    gigabytes = result["bytes"] / 1e9
    rows = [
        (name, f"{summary['median']:.2f}", f"{gigabytes / summary['median']:.2f}")
        for name, summary in result["summary"].items()
    ]
    title = f"{result['parameters'] / 1e6:.0f}M parameters, {gigabytes:.2f} GB"
    common.print_table(console, title, ["", "median s", "GB/s"], rows, LEGEND)
    common.print_verdicts(console, result["ratios"])
    for name, nbytes in result["memory"].items():
        console.print(f"memory of {name}: {nbytes / 1e6:.0f} MB more")
    largest, share = result["largest array"] / 1e6, result["share of a rank"] / 1e6
    console.print(f"largest array {largest:.0f} MB, a rank's share {share:.0f} MB")


if __name__ == "__main__":
    main()
