"""Which cases of a test a run takes, where another run takes the others."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence


def part_of(tests: Sequence[str], part: int, parts: int) -> set[str]:
    """Return the node ids of one of several parts of all tests.

    The cases of a parametrized test are dealt out to the parts, in an order that does
    not follow their parameters: else a part would have, say, one transport alone. A
    test that has fewer cases than there are parts is in all of them.

    Args:
        part: from 0.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        cases[test.partition("[")[0]].append(test)
    kept: set[str] = set()
    for group in cases.values():
        group.sort(key=lambda test: zlib.crc32(test.encode()))
        kept |= set(group[part::parts] if len(group) >= parts else group)
    return kept
