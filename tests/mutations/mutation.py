"""Single-line mistakes that the suite has to catch: what one is, and the lists of them.

Each module of `lists/` has `MUTATIONS`. `runner` makes one mistake after the other in a
copy of the sources, and runs the tests that should fail.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from tests.support.jobs import ROOT

LISTS = Path(__file__).parent / "lists"


class Mutation(NamedTuple):
    """A mistake on one line, and the tests that should fail with it.

    Attributes:
        file: relative to mlxdist/, such as "optim/step.py".
        old: a part of one line, which occurs once in the file.
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


def all_mutations(pattern: str = "") -> list[Mutation]:
    """Return the mutations of all lists whose list, file or text has the pattern."""
    found = []
    for path in sorted(LISTS.glob("[a-z]*.py")):
        module = importlib.import_module(f"tests.mutations.lists.{path.stem}")
        found += [m for m in module.MUTATIONS if pattern in f"{path.stem} {m}"]
    return found


def source_of(mutation: Mutation, root: Path = ROOT) -> str:
    return (root / mutation.path).read_text()
