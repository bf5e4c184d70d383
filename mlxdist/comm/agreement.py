"""Ranks compare what they are about to do, before they do it.

A collective on ranks that disagree gives wrong numbers, or never ends. So each one is
preceded by a header of a few words, the same length whatever the call, which costs
microseconds. Where headers differ, the ranks exchange their reasons in full and all of
them raise the same error.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Sequence

import numpy as np

from ..layout.entries import fingerprint
from .collectives import Collectives


class OnAllRanks(Exception):
    """Mixed into errors that every rank raises at once, so that one of them tells."""


class MismatchError(ValueError, OnAllRanks):
    """The ranks disagree. Raised on all of them, before anything has changed."""


def ranks_text(ranks: Sequence[int]) -> str:
    """`rank 3` or `ranks 0, 2`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def difference(texts: Sequence[str]) -> str:
    """Which ranks say what, with equal answers named once."""
    groups: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        groups.setdefault(text, []).append(rank)
    return "\n".join(f"  {ranks_text(who)}: {text}" for text, who in groups.items())


def list_difference(lists: Sequence[Sequence[str]], most: int = 8) -> str:
    """What each rank has that not all have, for lists that are equal but for a few."""
    common = set(lists[0]).intersection(*map(set, lists[1:]))
    texts = []
    for lines in lists:
        own = [line for line in lines if line not in common]
        more = f" and {len(own) - most} more" if len(own) > most else ""
        texts.append("; ".join(own[:most]) + more if own else "nothing of its own")
    return difference(texts)


def words_of(number: float) -> int:
    """A float's bits, as a header carries them."""
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])


def float_of(word: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", word))[0])


def agree(
    comm: Collectives,
    call: str,
    detail: int,
    describe: Callable[[], list[str]],
    *,
    number: float = 0.0,
    problem: str | None = None,
    hint: str = "",
) -> list[float]:
    """Compares a call and its details over the ranks; 40 bytes a rank on the wire.

    Args:
        call: what this rank is about to do, such as "update".
        detail: a fingerprint of what it does it with.
        describe: the same in words, line by line; called only on a disagreement.
        number: a number of this rank's that the others want to know.
        problem: why this rank can't take part; refuses the call on all ranks.
        hint: what to do about a difference.

    Returns:
        Every rank's number.

    Raises:
        MismatchError: on every rank, where two of them differ or one has a problem.
    """
    header = [fingerprint(call), detail, problem is not None, words_of(number)]
    recorder = comm.recorder
    with recorder.call(call):
        record = recorder.started("agree")
        every = comm.all_gather_words(np.array(header, np.uint64))
        record.end = time.time()
    if (every[:, :2] == every[0, :2]).all() and not every[:, 2].any():
        return [float_of(int(word)) for word in every[:, 3]]
    lines = [] if problem is not None else describe()
    told = json.dumps({"call": call, "problem": problem, "lines": lines})
    answers = [json.loads(text) for text in comm.all_gather_bytes(told.encode())]
    raise MismatchError(_reason(answers, hint))


def _reason(answers: list[dict[str, object]], hint: str) -> str:
    calls = [str(answer["call"]) for answer in answers]
    problems = {
        rank: str(answer["problem"])
        for rank, answer in enumerate(answers)
        if answer["problem"] is not None
    }
    if problems:
        told = [problems.get(rank, "ready") for rank in range(len(answers))]
        return f"{calls[0]} refused, nothing was changed:\n{difference(told)}"
    if len(set(calls)) > 1:
        return (
            "the ranks are not doing the same thing; every rank has to make the same "
            f"calls in the same order:\n{difference(calls)}"
        )
    lists = [[str(line) for line in _lines(answer)] for answer in answers]
    return (
        f"{calls[0]} refused, nothing was changed: the ranks differ. Not all ranks "
        f"have:\n{list_difference(lists)}\n{hint}".rstrip()
    )


def _lines(answer: dict[str, object]) -> list[object]:
    lines = answer["lines"]
    assert isinstance(lines, list)
    return lines


def weight_problem(weight: float | None) -> str | None:
    """What is wrong with a rank's weight, if anything is."""
    if weight is None or weight == 0 or 1e-9 <= float(weight) <= 1e15:
        return None
    return f"its weight is {weight}; it must be 0, or a number from 1e-9 to 1e15"
