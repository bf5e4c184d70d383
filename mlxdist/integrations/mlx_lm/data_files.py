"""What is wrong with training data, by file and line, or by row.

mlx-lm reads train.jsonl, valid.jsonl and test.jsonl when the model is loaded, and
tokenizes a row when it is drawn. Its errors, such as "list index out of range" for an
empty file and for an empty text, don't say where.
"""

from __future__ import annotations

import json
import reprlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def data_problems(args: Namespace) -> Iterator[str]:
    """Yield what is wrong with the files in the folder `data`, if it is one.

    Args:
        args: of the command.
    """
    folder = Path(args.data)
    if getattr(args, "hf_dataset", None) or not folder.exists():
        return
    used = {"train": args.train, "valid": args.train, "test": args.test}
    for name, is_used in used.items():
        path = folder / f"{name}.jsonl"
        if path.exists():
            yield from _file_problems(path, _formats(args), is_used=is_used)
        elif is_used and name != "valid":
            yield f"data: there is no {path}, which --{name} needs"


def _formats(args: Namespace) -> list[tuple[str, ...]]:
    """The features of a row: one of these, looked for in this order, as by mlx-lm."""
    prompt = getattr(args, "prompt_feature", "prompt")
    completion = getattr(args, "completion_feature", "completion")
    chat = getattr(args, "chat_feature", "messages")
    return [(prompt, completion), (chat,), (getattr(args, "text_feature", "text"),)]


def _file_problems(
    path: Path, formats: list[tuple[str, ...]], *, is_used: bool
) -> Iterator[str]:
    """Yield the first problem of a file. The first row decides what all need.

    Args:
        is_used: mlx-lm parses a file that no flag asks for, and looks at its first row.
    """
    wanted: tuple[str, ...] = ()
    # Encoding and ends of lines are those of mlx-lm. What is no text is looked for by
    # line: mlx-lm's error says only where it is in a block of the file.
    with open(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            where = f"data: line {number} of {path}"
            try:
                line.encode(file.encoding)
                row = json.loads(line)
            except UnicodeEncodeError:
                yield f"{where} is no text in {file.encoding}"
                return
            except ValueError as error:
                found = f"is no JSON: {error}" if line.strip() else "is empty"
                yield f"{where} {found}. Each line is an object of JSON"
                return
            if wanted and not is_used:
                continue
            problem = _row_problem(row, wanted, formats)
            if problem is not None:
                yield f"{where} {problem}"
                return
            wanted = wanted or _format(row, formats)
    if not wanted:
        yield f"data: {path} is empty: add rows, or remove it"


def _row_problem(
    row: object, wanted: tuple[str, ...], formats: list[tuple[str, ...]]
) -> str | None:
    if not isinstance(row, dict):
        return "is no object of JSON, such as {'text': '...'}"
    missing = [name for name in wanted if name not in row]
    if missing:
        return f"has no {missing[0]}, which the first line has"
    if not (wanted or _format(row, formats)):
        texts = ", or ".join(" and ".join(map(str, names)) for names in formats)
        return f"has {', '.join(row) or 'nothing'}, wanted {texts}"
    return None


def _format(row: dict[str, object], formats: list[tuple[str, ...]]) -> tuple[str, ...]:
    return next((names for names in formats if row.keys() >= set(names)), ())


class Rows:
    """One of mlx-lm's datasets, which names a row that can't be tokenized.

    Args:
        name: train, valid or test.
    """

    def __init__(self, name: str, rows: Any):
        self.name, self._rows = name, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def process(self, row: Any) -> Any:
        """Return the tokens of a row, and how many of them are masked."""
        try:
            return self._rows.process(row)
        except Exception as error:
            raise ValueError(
                f"the {self.name} dataset has a row that can't be tokenized: "
                f"{reprlib.repr(row)}: {type(error).__name__}: {error}"
            ) from error
