"""The text to train on: Python's standard library, or the text files of a folder."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

import mlxdist

# Tests, and modules that are tables of data rather than something to read.
SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
HELD_OUT_OF_256 = 13  # 5% of the files are for validation only


class Corpus(NamedTuple):
    """Bytes to train on and bytes held out, each file ended by a zero byte."""

    train: np.ndarray
    held_out: np.ndarray
    prompt: str  # what a sample of generated text begins with


class Rows(NamedTuple):
    """A corpus as rows of `context + 1` bytes."""

    train: np.ndarray
    held_out: mx.array  # a few of them, evenly spaced
    prompt: str


def read_rows(
    folder: str | None,
    world: mlxdist.World,
    *,
    context: int,
    needed: int,
    validation_rows: int = 60,
) -> Rows:
    """Reads the text on every rank. Where one of them can't, all ranks end."""
    problem = None
    try:
        corpus = read_corpus(folder)
        train, held_out = (windows(text, context) for text in corpus[:2])
        if len(train) < needed:
            raise ValueError(f"{len(train)} rows of text, but a step takes {needed}")
    except ValueError as error:
        problem = error
    failed = world.mean(float(problem is not None))
    if problem and (world.is_root or failed < 1):
        print(f"train_lm.py: error: {problem}", file=sys.stderr)
    if failed:
        sys.exit(2)
    if not world.identical({"text": mx.array(corpus.train)}):
        world.print(
            "train_lm.py: error: the ranks read different text", file=sys.stderr
        )
        sys.exit(2)
    few = held_out[:: max(1, len(held_out) // validation_rows)]
    return Rows(train, mx.array(few), corpus.prompt)


def read_corpus(folder: str | None = None) -> Corpus:
    """Reads the standard library's source, or every text file below `folder`.

    The path of a file, relative to the folder, decides whether it is held out, so that
    every rank and every run draw the same line.

    Raises:
        ValueError: there is no such folder, or not enough text in it.
    """
    if folder is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths, prompt = standard_library(root), "def "
    else:
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(f"--data {folder}: there is no such folder")
        paths, prompt = visible_files(root), ""
    train, held_out = [], []
    for path in sorted(paths):
        text = path.read_bytes()
        if is_text(text):
            name = path.relative_to(root).as_posix().encode()
            held = hashlib.sha256(name).digest()[0] < HELD_OUT_OF_256
            (held_out if held else train).append(text + b"\0")
    if not train and not held_out:
        raise ValueError(f"{root} holds no text files: UTF-8, and no zero bytes")
    if not train or not held_out:  # a few files only: hold out the end of the text
        text = b"".join(train + held_out)
        cut = len(text) - len(text) * HELD_OUT_OF_256 // 256
        train, held_out = [text[:cut]], [text[cut:]]
    prompt = prompt or held_out[0][:32].decode(errors="ignore")
    return Corpus(as_array(train), as_array(held_out), prompt)


def standard_library(root: Path) -> Iterator[Path]:
    """The modules of the standard library, without its tests."""
    for path in root.rglob("*.py"):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            yield path


def visible_files(root: Path) -> Iterator[Path]:
    """All files below a folder, but none that a leading dot hides."""
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden:
            yield path


def is_text(data: bytes) -> bool:
    """Whether a file's bytes are UTF-8 text."""
    try:
        return bool(data) and "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def as_array(texts: list[bytes]) -> np.ndarray:
    """Texts as one array of bytes."""
    return np.frombuffer(b"".join(texts), np.uint8)


def windows(text: np.ndarray, context: int) -> Any:
    """The text as rows of `context + 1` bytes, one row's last the next one's first.

    Raises:
        ValueError: the text is shorter than that.
    """
    if len(text) <= context:
        raise ValueError(f"{len(text)} bytes of text, but {context + 1} are needed")
    return np.lib.stride_tricks.sliding_window_view(text, context + 1)[::context]
