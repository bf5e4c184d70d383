"""How fast, and in how much memory, are checkpoints saved and loaded?

    mlxdist bench -n 2 checkpoint --json benchmarks/results/checkpoint.json

AdamW in float32, sharded, on 2 ranks, beside the disk's own rate: all ranks write, and
read, as many bytes in plain blocks of 4 MiB, each rank a file of its own, around the
page cache and through it. Writes end on the disk (fsync). What is read was dropped
from the cache before, which takes root. Memory is the growth of a rank's resident
peak over what it held before, in the same launch; that of consolidating is the peak of
the command's own process over one that only imports it. Linux only: it reads /proc.
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
from common.folder import shared_folder
from common.progress import Progress
from mlx.utils import tree_flatten

import mlxdist

RANKS = 2
BLOCK = 4 * 2**20
WIDTH = 1024
LAYER = 12 * WIDTH * WIDTH  # parameters of a transformer's block


def main() -> None:
    args = parse_arguments()
    world = mlxdist.init()
    out = common.console() if world.is_root else None
    with shared_folder(world, args.folder) as folder:
        result = measure(world, args, folder, out)
    if not world.is_root:
        return
    show(out, result)
    if args.json:
        common.write_json(args.json, __doc__.splitlines()[0], result, world.size)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=200, help="in millions")
    parser.add_argument("--rounds", type=common.positive, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on which disk")
    common.add_options(parser)
    args = parser.parse_args()
    if args.quick:
        args.parameters, args.rounds = 20, 2
    return args


def measure(world: Any, args: Any, folder: Path, out: Any) -> dict[str, Any]:
    parameters = tree_of(args.parameters * 1e6)
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=True)
    optimizer.init(parameters)
    mx.eval(parameters, optimizer.state)
    sizes = [leaf.nbytes for _, leaf in tree_flatten(parameters)]
    state = optimizer.describe().state_bytes
    share = (sum(sizes) + world.size * state) // world.size
    disk = Disk(folder / f"plain-{world.rank}", share)
    saves = folder / "saves"
    count = iter(range(1, 1000))

    def save() -> None:
        mlxdist.save_checkpoint(saves, next(count), parameters, optimizer, keep=1)

    def load() -> None:
        mlxdist.load_checkpoint(saves, parameters, optimizer)

    save()
    memory = {"save": growth(save), "load": growth(load)}
    names: dict[str, Callable[[], None]] = {
        "disk, written": lambda: disk.write(direct=True),
        "disk, written through the cache": lambda: disk.write(direct=False),
        "save": save,
        "disk, read": lambda: disk.read(direct=True),
        "disk, read through the cache": lambda: disk.read(direct=False),
        "load": load,
    }
    disk.write(direct=True)
    with Progress(out, len(names) * (args.rounds + 1)) as progress:
        samples = common.interleave(
            world, names, rounds=args.rounds, before=drop_caches, progress=progress
        )
    disk.path.unlink()
    world.barrier()
    pairs = [
        ("disk, written", "save"),
        ("disk, written through the cache", "save"),
        ("disk, read", "load"),
        ("disk, read through the cache", "load"),
    ]
    if world.is_root:
        memory["consolidate"] = consolidate(saves, folder / "one")
    return {
        "bytes": share * world.size,
        "parameters": sum(sizes) // 4,
        "largest array": max(sizes),
        "share of a rank": sum(sizes) + state,
        "memory": memory,
        **common.record(samples, pairs),
    }


def tree_of(parameters: float) -> dict[str, Any]:
    """A transformer's matrices: blocks of width 1024, and a table for the rest."""
    layers = int(parameters * 0.9) // LAYER
    rows = max(1, (int(parameters) - layers * LAYER) // WIDTH)
    shapes = {"query": 3 * WIDTH, "out": WIDTH, "up": 4 * WIDTH, "down": 4 * WIDTH}
    tree = {
        "blocks": [
            {name: mx.random.normal((rows, WIDTH)) for name, rows in shapes.items()}
            for _ in range(layers)
        ],
        "embedding": mx.random.normal((rows, WIDTH)),
    }
    mx.random.seed(0)
    return mlxdist.init().broadcast(tree)


class Disk:
    """The disk without mlxdist: one file of a rank."""

    def __init__(self, path: Path, nbytes: int):
        self.path, self.blocks = path, nbytes // BLOCK
        self.buffer = mmap.mmap(-1, BLOCK)
        self.buffer[:] = np.random.default_rng(0).bytes(BLOCK)

    def write(self, *, direct: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT * direct
        file = os.open(self.path, flags)
        for _ in range(self.blocks):
            os.write(file, self.buffer)
        os.fsync(file)
        os.close(file)

    def read(self, *, direct: bool) -> None:
        file = os.open(self.path, os.O_RDONLY | os.O_DIRECT * direct)
        while os.readv(file, [self.buffer]):
            continue
        os.close(file)


def drop_caches() -> None:
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")


def growth(act: Callable[[], None]) -> int:
    """Bytes by which the resident peak passes what was held before."""
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    act()
    return held("VmHWM") - before


def held(name: str) -> int:
    found = re.search(
        rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M
    )
    assert found
    return 1024 * int(found[1])


def consolidate(saves: Path, target: Path) -> int:
    """Peak bytes of the command beyond one that only lists the checkpoints."""
    base = [sys.executable, "-m", "mlxdist.cli", "checkpoint"]
    peaks = []
    environment = mlxdist.runtime.without_mpi(os.environ)
    for words in (["show"], ["consolidate", "--to", str(target)]):
        subprocess.run(
            [*base, words[0], str(saves), *words[1:]],
            check=True,
            capture_output=True,
            env=environment,
        )
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        peaks.append(usage.ru_maxrss * 1024)  # of the largest child so far
    shutil.rmtree(target)
    return peaks[1] - peaks[0]


def show(out: Any, result: dict[str, Any]) -> None:
    gigabytes = result["bytes"] / 1e9
    rows = [
        (name, f"{one['median']:.2f}", f"{gigabytes / one['median']:.2f}")
        for name, one in result["summary"].items()
    ]
    title = f"{result['parameters'] / 1e6:.0f}M parameters, {gigabytes:.2f} GB"
    common.print_table(out, title, ["", "median s", "GB/s"], rows)
    for pair, ratio in result["ratios"].items():
        low, high = ratio["interval"]
        out.print(f"{pair}: {ratio['ratio']:.2f} ({low:.2f} to {high:.2f})")
    for what, nbytes in result["memory"].items():
        out.print(f"memory of {what}: {nbytes / 1e6:.0f} MB more")
    largest, share = result["largest array"] / 1e6, result["share of a rank"] / 1e6
    out.print(f"largest array {largest:.0f} MB, a rank's share {share:.0f} MB")


if __name__ == "__main__":
    main()
