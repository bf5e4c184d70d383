"""Parameter shapes and dtypes of a model in safetensors files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..layout import Entry, KeyPath
from .memory_model import Model

_FLOATS = ("float64", "float32", "float16", "bfloat16")


def model_of_files(
    paths: Sequence[Path], optimizer: str, *, bucket_size: int, frozen: int = 0
) -> Model:
    """Return the model in safetensors files. Reads only the files' headers.

    Args:
        frozen: bytes of parameters that are not trained, besides those in the files
            that are not floating-point.

    Raises:
        ValueError: a file is not in safetensors format, the files have no float
            tensor, or the optimizer is unknown.
        OSError: a file cannot be read.
    """
    entries: list[Entry] = []
    for path in paths:
        floats, other_bytes = _read_header(path)
        entries += floats
        frozen += other_bytes
    if not any(entry.size for entry in entries):
        raise ValueError(f"{', '.join(map(str, paths))}: no float tensor to train")
    return Model(tuple(entries), optimizer, bucket_size, frozen)


def _read_header(path: Path) -> tuple[list[Entry], int]:
    """Return a file's float tensors, and the bytes of all its other tensors."""
    # Imported here since it imports numpy, and other commands must start fast.
    from ..checkpoint.block_file import Reader
    from ..checkpoint.safetensors import tensors_of

    reader = Reader(Path(os.path.realpath(path)))  # Hugging Face's cache has symlinks
    try:
        tensors = tensors_of(reader)
    finally:
        reader.close()
    entries = []
    for tensor in tensors:
        if tensor.dtype not in _FLOATS:
            continue
        entry = Entry(KeyPath.parse(tensor.name), tensor.shape, tensor.dtype)
        if tensor.nbytes != entry.nbytes:
            raise ValueError(
                f"{path} is not a safetensors file: {entry} has {tensor.nbytes} bytes"
            )
        entries.append(entry)
    return entries, sum(t.nbytes for t in tensors if t.dtype not in _FLOATS)
