"""The benchmarks of a checkout: which there are, and how to run one."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import launcher

FOLDER = "benchmarks"


class Benchmark(NamedTuple):
    """A script, the question that it answers, and on how many ranks by default.

    `ranks` is None where the script starts its own jobs.
    """

    name: str
    path: Path
    question: str
    ranks: int | None


def find_folder() -> Path:
    """The benchmarks beside this package, or those of the working directory.

    Raises:
        ValueError: there are none, since they are not installed with the package.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / FOLDER / "common" / "environment.py").exists():
            return root / FOLDER
    raise ValueError(
        "the benchmarks are not installed with mlxdist: they lie in benchmarks/ of its "
        "source, a git checkout or its source archive. Unpack one, and run `mlxdist "
        "bench` in it, or `pip install -e .` there once and run it from anywhere"
    )


def list_benchmarks(folder: Path) -> list[Benchmark]:
    """All scripts of the folder, by name."""
    return [read(path) for path in sorted(folder.glob("*.py"))]


def read(path: Path) -> Benchmark:
    """Reads a script's docstring and its `RANKS = 2`, without running it."""
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


def run(name: str, arguments: Sequence[str], *, ranks: int | None = None) -> int:
    """Runs a benchmark and returns its exit code.

    Args:
        ranks: of a script that all ranks run; its own default where it is None.

    Raises:
        ValueError: there is no such benchmark, or it starts its own jobs and `ranks`
            was given.
    """
    known = {each.name: each for each in list_benchmarks(find_folder())}
    if name not in known:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(known)}")
    chosen = known[name]
    if chosen.ranks is None:
        if ranks is not None:
            raise ValueError(
                f"the benchmark {name} starts its own jobs: -n is not for it; "
                f"`mlxdist bench {name} --help` says what is"
            )
        command = [sys.executable, os.fspath(chosen.path), *arguments]
        # In this process's place: signals reach it, and its exit code is this one's.
        os.execv(sys.executable, command)  # noqa: S606
    job = launcher.Job(
        ranks=ranks or chosen.ranks,
        script=os.fspath(chosen.path),
        arguments=tuple(arguments),
    )
    return launcher.launch(job).exit_code
