"""Text to train on: Python's standard library, or the text files of a folder."""

from __future__ import annotations

import codecs
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from run_folder import exit_if

import mlxdist

# Tests, and modules that are tables of data.
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
HELD_OUT_OF_256 = 13  # files: 5% are for validation only
PIECE = 2**24  # bytes that are decoded at once


class Corpus(NamedTuple):
    """Bytes to train on and bytes held out, with a zero byte after each file."""

    train: np.ndarray
    held_out: np.ndarray
    prompt: str  # the beginning of generated text


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
    """Read the text on every rank; exit on all ranks if one of them cannot.

    Args:
        context: bytes that the model sees.
        needed: rows of one step, which the text must have at least.
        validation_rows: at most so many held-out rows are used.
    """
    problem, text = None, np.zeros(0, np.uint8)
    try:
        text, held_out_text, prompt = read_corpus(folder)
        train = windows(text, context, "to train on")
        held_out = windows(held_out_text, context, "to hold out")
        if len(train) < needed:
            raise ValueError(f"found {len(train)} rows of text, wanted {needed} a step")
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    except ValueError as error:
        problem = error
    exit_if(world, problem)
    if not world.identical({"checksum": checksum(text)}):
        exit_if(world, "the ranks read different text")
    stride = max(1, len(held_out) // validation_rows)
    return Rows(train, mx.array(held_out[::stride]), prompt)


def read_corpus(folder: str | None = None) -> Corpus:
    """Return the standard library's source, or every text file below `folder`.

    A hash of a file's relative path decides whether it is held out: the same files on
    every rank and in every run.

    Raises:
        ValueError: the folder does not exist, or has no text.
        OSError: a file can't be read.
    """
    if folder is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths, prompt = standard_library(root), "def "
    else:
        root = Path(folder)
        if not folder or not root.exists():
            raise ValueError(f"--data {folder}: there is no such folder")
        if not root.is_dir():
            raise ValueError(
                f"--data {folder}: that is a file, wanted a folder of text files"
            )
        paths, prompt = visible_files(root), ""
    train, held_out = bytearray(), bytearray()
    for path in sorted(paths):
        text = path.read_bytes()
        if is_text(text):
            name = path.relative_to(root).as_posix().encode()
            is_held_out = hashlib.sha256(name).digest()[0] < HELD_OUT_OF_256
            part = held_out if is_held_out else train
            part += text
            part += b"\0"
    if not train and not held_out:
        raise ValueError(f"{root} has no text files: UTF-8 without zero bytes")
    if not train or not held_out:  # few files: hold out the end of the text
        text = train or held_out
        cut = len(text) - len(text) * HELD_OUT_OF_256 // 256
        train, held_out = text[:cut], text[cut:]
    prompt = prompt or held_out[:32].partition(b"\0")[0].decode(errors="ignore")
    return Corpus(as_array(train), as_array(held_out), prompt)


def standard_library(root: Path) -> Iterator[Path]:
    """Yield the modules of the standard library, without its tests."""
    for path in root.rglob("*.py"):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            yield path


def visible_files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder, except those that a leading dot hides."""
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden:
            yield path


def is_text(data: bytes) -> bool:
    """Return whether a file's bytes are UTF-8 text without zero bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), PIECE):
            decoder.decode(data[start : start + PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return bool(data) and b"\0" not in data


def as_array(text: bytearray) -> np.ndarray:
    """Return text as a uint8 array, without copying it."""
    return np.frombuffer(text, np.uint8)


def checksum(text: np.ndarray) -> mx.array:
    """Return the SHA-256 of a text, as uint8 of shape (32,).

    The text itself may have more bytes than an MLX array can: 2^31.
    """
    return mx.array(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))


def windows(text: np.ndarray, context: int, purpose: str) -> Any:
    """Return a view of the text as rows of `context + 1` bytes.

    The last byte of a row is the first one of the next row.

    Raises:
        ValueError: the text is shorter than a row.
    """
    if len(text) <= context:
        raise ValueError(
            f"found {len(text)} bytes of text {purpose}, wanted {context + 1} or more"
        )
    return np.lib.stride_tricks.sliding_window_view(text, context + 1)[::context]
