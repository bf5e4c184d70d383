"""The steps of a checkpoint succeed on all ranks, or fail on all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .agreement import OnAllRanks, difference

Exchange = Callable[[bytes], list[bytes]]  # every rank's bytes, in rank order


class CheckpointError(ValueError, OnAllRanks):
    """A checkpoint can't be saved or loaded. Raised on all ranks."""


def together(exchange: Exchange, failed: str, problem: str | None, **told: Any) -> Any:
    """Tells the others how it went here, and returns what all of them told.

    Raises:
        CheckpointError: on all ranks, where one has a problem.
    """
    sent = json.dumps({"problem": problem, **told}).encode()
    answers = [json.loads(data) for data in exchange(sent)]
    problems = [answer["problem"] for answer in answers]
    if any(problems):
        texts = [problem or "ready" for problem in problems]
        same = len(set(texts)) == 1
        why = f" {texts[0]}" if same else f"\n{difference(texts)}"
        raise CheckpointError(f"{failed}:{why}")
    return answers
