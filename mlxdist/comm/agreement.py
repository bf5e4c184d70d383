"""Agreement: ranks compare what they are about to do, before they do it.

A collective on ranks that disagree gives wrong numbers, or never ends. So each call is
preceded by a header of a few words, of the same length whatever the call, which costs
microseconds. Where headers differ, the ranks exchange their reasons in full and all of
them raise the same error.
"""

from __future__ import annotations

import json
import reprlib
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypedDict, TypeVar, cast

import numpy as np

from ..arrays import device
from ..layout.entries import fingerprint
from .collectives import Collectives

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class OnAllRanks(Exception):
    """Mixed into errors that every rank raises at once, so that only one reports."""


class MismatchError(ValueError, OnAllRanks):
    """The ranks disagree. Raised on all of them, before anything has changed."""


class _Reason(TypedDict):
    """One rank's side of a disagreement."""

    call: str
    problem: str | None
    lines: list[str]


def no_lines() -> list[str]:
    """The `describe` of a call that has nothing to compare but its name."""
    return []


def agree(
    comm: Collectives,
    call: str,
    detail: int = 0,
    describe: Callable[[], list[str]] = no_lines,
    *,
    number: float = 0.0,
    problem: str | None = None,
    remedy: str = "",
    meanwhile: Callable[[], None] | None = None,
) -> list[float]:
    """Compare a call and its details over the ranks. Sends 40 bytes a rank.

    Args:
        call: what this rank is about to do, such as "update".
        detail: a fingerprint of the call's arguments.
        describe: returns the arguments as text, line by line; called only where the
            ranks disagree.
        number: a number of this rank that the others need.
        problem: why this rank can't take part; refuses the call on all ranks.
        remedy: appended to the error where details differ.
        meanwhile: called once the other ranks need not wait for this one. Must not
            raise.

    Returns:
        Every rank's number.

    Raises:
        MismatchError: on every rank, where two of them differ or one has a problem,
            such as an error that MLX would raise in the midst of what follows.
    """
    problem = problem or device.pending_error()
    header = [fingerprint(call), detail, problem is not None, word_of(number)]
    recorder = comm.recorder
    with recorder.call(call):
        record = recorder.started("agree")
        headers = comm.all_gather_words(np.array(header, np.uint64), meanwhile)
        record.end = time.time()
    if (headers[:, :2] == headers[0, :2]).all() and not headers[:, 2].any():
        return [float_of(int(word)) for word in headers[:, 3]]
    lines = [] if problem is not None else describe()
    reason: _Reason = {"call": call, "problem": problem, "lines": lines}
    gathered = comm.all_gather_bytes(json.dumps(reason).encode())
    raise MismatchError(_mismatch_text([json.loads(text) for text in gathered], remedy))


def result_or_problem(
    read: Callable[[Argument], Result], argument: Argument
) -> tuple[Result | None, str | None]:
    """Return what `read` makes of an argument, or the text of its error.

    A rank that raised ahead of `agree` would leave the others waiting for it.
    """
    try:
        return read(argument), None
    except ValueError as error:
        return None, str(error)
    except Exception as error:  # such as MLX's, of a file that is damaged on one host
        return None, error_text(error)


def agree_on_success(
    comm: Collectives, call: str, action: Callable[[], Result]
) -> Result:
    """Return the result of an action that all ranks take, where none of them failed.

    Raises:
        MismatchError: on all ranks, where it failed on one of them. There the error of
            the action is its cause.
    """
    result, cause = None, None
    try:
        result = action()
    except Exception as error:
        cause = error
    try:
        agree(comm, call, problem=None if cause is None else error_text(cause))
    except MismatchError as refusal:
        raise refusal from cause
    return cast("Result", result)


def error_text(error: BaseException) -> str:
    """Return the type and the message of an error."""
    return f"{type(error).__name__}: {error}"


def weight_problem(weight: float | None) -> str | None:
    """Return why a rank's weight is invalid, or None."""
    with suppress(Exception):  # no number, or an array that can't be evaluated
        if weight is None or weight == 0 or 1e-9 <= float(weight) <= 1e15:
            return None
    text = reprlib.repr(weight)
    return f"its weight is {text}; it must be 0, or a number from 1e-9 to 1e15"


def ranks_text(ranks: Sequence[int]) -> str:
    """`rank 3` or `ranks 0, 2`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def difference(texts: Sequence[str]) -> str:
    """Return each rank's text, with ranks whose texts are equal on one line."""
    groups: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        groups.setdefault(text, []).append(rank)
    return "\n".join(f"  {ranks_text(who)}: {text}" for text, who in groups.items())


def list_difference(lists: Sequence[Sequence[str]], most: int = 8) -> str:
    """Return each rank's lines that not all ranks have, at most `most` of them."""
    common = set(lists[0]).intersection(*map(set, lists[1:]))
    texts = []
    for lines in lists:
        extra = [line for line in lines if line not in common]
        more = f" and {len(extra) - most} more" if len(extra) > most else ""
        texts.append("; ".join(extra[:most]) + more if extra else "nothing of its own")
    return difference(texts)


def word_of(number: float) -> int:
    """A float64's bits, as a header carries them."""
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])


def float_of(word: int) -> float:
    """The float64 with these bits."""
    return float(struct.unpack("<d", struct.pack("<Q", word))[0])


def _mismatch_text(reasons: list[_Reason], remedy: str) -> str:
    calls = [reason["call"] for reason in reasons]
    if any(reason["problem"] is not None for reason in reasons):
        problems = [reason["problem"] or "ready" for reason in reasons]
        return f"{calls[0]} refused, nothing was changed:\n{difference(problems)}"
    if len(set(calls)) > 1:
        return (
            "the ranks are not doing the same thing; every rank has to make the same "
            f"calls in the same order:\n{difference(calls)}"
        )
    lines = list_difference([reason["lines"] for reason in reasons])
    return (
        f"{calls[0]} refused, nothing was changed: the ranks differ. Not all ranks "
        f"have:\n{lines}\n{remedy}".rstrip()
    )
