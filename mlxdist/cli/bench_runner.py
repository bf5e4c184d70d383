"""The scripts in benchmarks/ of a checkout: list them, and run one."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..launcher import Job, launch

_CHECKOUT = Path(__file__).resolve().parents[2]


class Benchmark(NamedTuple):
    """A benchmark script.

    Attributes:
        question: the first line of its docstring.
        ranks: the default number of ranks; None if the script starts its own jobs.
    """

    name: str
    path: Path
    question: str
    ranks: int | None


def find_folder(checkout: Path = _CHECKOUT) -> Path:
    """Return the folder of benchmarks of a checkout, by default of this one.

    Raises:
        ValueError: there are none.
    """
    folder = checkout / "benchmarks"
    if (folder / "common" / "environment.py").exists():
        return folder
    raise ValueError(
        f"no benchmarks in {folder}: run `mlxdist bench` from a git checkout of "
        "mlxdist, or its source archive, installed with `pip install -e .`"
    )


def list_benchmarks(folder: Path) -> list[Benchmark]:
    """Return all scripts of the folder, sorted by name."""
    return [_read(path) for path in sorted(folder.glob("*.py"))]


def _read(path: Path) -> Benchmark:
    """Parse a script's docstring and its `RANKS = 2`, without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    question = (ast.get_docstring(tree) or path.stem).partition("\n")[0]
    ranks = None
    for node in tree.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="RANKS")], value=ast.Constant(value=int(number))
            ):
                ranks = number
    return Benchmark(path.stem, path, question, ranks)


def run(
    name: str,
    arguments: Sequence[str],
    *,
    ranks: int | None = None,
    folder: Path | None = None,
) -> int:
    """Run a benchmark and return its exit code.

    Args:
        ranks: for a script that runs on all ranks; None takes the script's default.
        folder: of the benchmarks; None takes that of this checkout.

    Raises:
        ValueError: there is no such benchmark, or it starts its own jobs and `ranks`
            was given.
    """
    benchmarks = {each.name: each for each in list_benchmarks(folder or find_folder())}
    if name not in benchmarks:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(benchmarks)}")
    benchmark = benchmarks[name]
    if benchmark.ranks is None:
        if ranks is not None:
            raise ValueError(
                f"the benchmark {name} starts its own jobs and takes no -n; "
                f"see `mlxdist bench {name} --help`"
            )
        command = [sys.executable, os.fspath(benchmark.path), *arguments]
        # Replaces this process, so that signals and the exit code need no forwarding.
        os.execv(sys.executable, command)  # noqa: S606
    job = Job(
        ranks=ranks or benchmark.ranks,
        script=os.fspath(benchmark.path),
        arguments=tuple(arguments),
    )
    return launch(job).exit_code
