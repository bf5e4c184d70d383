"""Which tests and cases a run takes, where other runs take the rest."""

from __future__ import annotations

import ast
import zlib
from collections import defaultdict
from collections.abc import Sequence

RANKS = (2, 3, 4)
MANY = 4  # cases of one test


def cases_on(ranks: int, tests: Sequence[str]) -> set[str]:
    """Return the node ids of the tests that a run on some ranks takes.

    A test of many cases runs on 2, 3 and 4 ranks, on each with a third of its cases.
    One of few cases runs on 2 ranks, and each of its cases on 3 or on 4. The cases are
    dealt out in an order that does not follow their parameters: else a run would have,
    say, one transport alone. Tests of one case are dealt out by their names.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        cases[test.partition("[")[0]].append(test)
    return {
        test
        for name, group in cases.items()
        for index, test in enumerate(sorted(group, key=number_of), number_of(name))
        if ranks in ranks_of(index, len(group))
    }


def ranks_of(index: int, cases: int) -> tuple[int, ...]:
    """Return on how many ranks a case of a test of `cases` cases runs."""
    if cases < MANY:
        return (RANKS[0], RANKS[1 + index % 2])
    return (RANKS[index % len(RANKS)],)


def all_marked(source: str, mark: str) -> bool:
    """Return whether the source of a file marks all of its tests with `mark`."""
    values = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    marks = [
        ast.unparse(element)
        for value in values
        for element in (value.elts if isinstance(value, ast.List) else [value])
    ]
    return any(text.partition("(")[0] == f"pytest.mark.{mark}" for text in marks)


def number_of(name: str) -> int:
    """Return a number that is the same in each process, and follows no order."""
    return zlib.crc32(name.encode())
