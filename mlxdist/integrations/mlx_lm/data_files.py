"""What is wrong with a folder of training data, by file and line.

mlx-lm reads train.jsonl, valid.jsonl and test.jsonl when the model is loaded. Its
errors, such as "list index out of range" for an empty file, don't say where.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

_NAMES = ("train", "valid", "test")


def data_problems(args: Namespace) -> Iterator[str]:
    """Yield what is wrong with the files in the folder `data`, if it is one.

    Args:
        args: of the command.
    """
    folder = Path(args.data)
    if getattr(args, "hf_dataset", None) or not folder.exists():
        return
    needed = [name for name in ("train", "test") if getattr(args, name)]
    for name in _NAMES:
        path = folder / f"{name}.jsonl"
        if path.exists():
            yield from _file_problems(path, _formats(args))
        elif name in needed:
            yield f"data: there is no {path}, which --{name} needs"


def _formats(args: Namespace) -> list[tuple[str, ...]]:
    """The features of a row: one of these, looked for in this order, as by mlx-lm."""
    prompt = getattr(args, "prompt_feature", "prompt")
    completion = getattr(args, "completion_feature", "completion")
    chat = getattr(args, "chat_feature", "messages")
    return [(prompt, completion), (chat,), (getattr(args, "text_feature", "text"),)]


def _file_problems(path: Path, formats: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the first problem of a file. The first row decides what all need."""
    wanted: tuple[str, ...] = ()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"data: line {number} of {path}"
            try:
                row = json.loads(line)
            except ValueError as error:
                found = f"is no JSON: {error}" if line.strip() else "is empty"
                yield f"{where} {found}. Each line is an object of JSON"
                return
            if not isinstance(row, dict):
                yield f"{where} is no object of JSON, such as {{'text': '...'}}"
                return
            if not wanted:
                wanted = next((f for f in formats if row.keys() >= set(f)), ())
            if not wanted:
                texts = ", or ".join(" and ".join(names) for names in formats)
                yield f"{where} has {', '.join(row) or 'nothing'}, wanted {texts}"
                return
            missing = [name for name in wanted if name not in row]
            if missing:
                yield f"{where} has no {missing[0]}, which the first line has"
                return
    if not wanted:
        yield f"data: {path} is empty: add rows, or remove it"
