"""Single-line mistakes that the suite has to catch: what one is, and the lists of them.

Each module of `lists/` has `MUTATIONS`. `runner` makes one mistake after the other in a
copy of the sources, and runs the tests that should fail.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.jobs import ROOT

LISTS = Path(__file__).parent / "lists"


class Mutation(NamedTuple):
    """A mistake on one line, and the tests that should fail with it.

    Attributes:
        file: relative to mlxdist/, such as "optim/step.py".
        old: a part of one line, or up to its end, which occurs once in the file.
        new: what stands there by mistake. May have more lines than one.
        tests: files or node ids of pytest, relative to the repository.
        ranks: the tests marked mpi run under mpirun on each of these numbers of ranks.
            Without any, the tests that are not marked run in one process.
        equivalent: why no test can see the mistake, where none can.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    ranks: tuple[int, ...] = ()
    equivalent: str = ""

    @property
    def path(self) -> str:
        """The file, relative to the repository."""
        return f"mlxdist/{self.file}"

    def __str__(self) -> str:
        return f"{self.file}: {self.old!r} -> {self.new!r}"

    def mutated(self, source: str) -> str:
        """Return the source with the mistake.

        Raises:
            ValueError: where `old` does not occur exactly once.
        """
        count = source.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.path} has {self.old!r} {count} times, wanted once: change the "
                f"mutation in tests/mutations/lists to what stands there now"
            )
        return source.replace(self.old, self.new)


def mistakes(
    file: str,
    tests: Sequence[str],
    changes: Sequence[tuple[str, str]],
    ranks: tuple[int, ...] = (2,),
) -> list[Mutation]:
    """Return the mutations of one file that the same tests should catch."""
    return [Mutation(file, old, new, tuple(tests), ranks) for old, new in changes]


def all_mutations(texts: Sequence[str] = ("",)) -> list[Mutation]:
    """Return the mutations of all lists whose list, file or lines have a text."""
    found: list[Mutation] = []
    for path in sorted(LISTS.glob("[a-z]*.py")):
        module = importlib.import_module(f"tests.mutations.lists.{path.stem}")
        found += [
            mutation
            for mutation in module.MUTATIONS
            if any(text in f"{path.stem} {mutation}" for text in texts)
        ]
    return found


def source_of(mutation: Mutation, root: Path = ROOT) -> str:
    return (root / mutation.path).read_text()


def check_code(mutation: Mutation, source: str) -> None:
    """Raise SyntaxError or ValueError where a mistake is no other valid code.

    Any test would catch the first, and none the second.
    """
    trees = ast.parse(source), ast.parse(mutation.mutated(source))
    if ast.dump(trees[0]) == ast.dump(trees[1]):
        raise ValueError(f"{mutation} changes no code")
