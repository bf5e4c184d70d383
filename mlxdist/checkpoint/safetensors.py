"""The safetensors format: a JSON header, then the tensors in order."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np

from . import bounded_json
from .block_file import Reader
from .durable import DamagedError

_MAX_DIMENSIONS = 64

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",  # MLX's own
}


class Tensor(NamedTuple):
    """A tensor in a safetensors file; `offset` is in bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int = 0


def header(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    """Encode the header of a file that holds the tensors in this order.

    Raises:
        ValueError: if two tensors have the same name.
    """
    content: dict[str, object] = {"__metadata__": {"format": "mlx", **metadata}}
    end = 0
    for name, dtype, shape, nbytes, _ in tensors:
        if name in content:
            raise ValueError(f"two arrays have the name {name!r} in a file; rename one")
        content[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [end, end + nbytes],
        }
        end += nbytes
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    return len(text).to_bytes(8, "little") + text


def with_unique_names(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors; a name that repeats gets a number, as in "w (2)".

    For files whose tensors are read by offset and not by name.
    """
    unique: dict[str, Tensor] = {}
    numbers: Counter[str] = Counter()  # the last that each name got
    for tensor in tensors:
        name = tensor.name
        while name in unique:
            numbers[tensor.name] += 1
            name = f"{tensor.name} ({numbers[tensor.name] + 1})"
        unique[name] = tensor._replace(name=name)
    return list(unique.values())


def tensors_of(reader: Reader) -> list[Tensor]:
    """Return the tensors of a safetensors file, as its header lists them.

    Raises:
        DamagedError: if it is not a safetensors file.
    """
    try:
        length = int.from_bytes(_part(reader, 0, 8), "little")
        if length > min(bounded_json.MAX_BYTES, reader.nbytes - 8):
            raise ValueError(f"a header of {length} bytes")
        content = bounded_json.parse(_part(reader, 8, length))
        if not isinstance(content, dict):
            raise ValueError("its header is not an object")
        content.pop("__metadata__", None)
        return [_tensor(reader, 8 + length, *item) for item in content.items()]
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(
            f"{reader.path} is not a safetensors file: {error}"
        ) from None


def _part(reader: Reader, offset: int, count: int) -> bytes:
    if reader.nbytes < offset + count:
        raise ValueError(f"it has {reader.nbytes} bytes")
    data = np.empty(count, np.uint8)
    reader.read(offset, data)
    return data.tobytes()


def _tensor(reader: Reader, base: int, name: str, item: object) -> Tensor:
    code, shape, offsets = (
        item.get(key) if isinstance(item, dict) else None
        for key in ("dtype", "shape", "data_offsets")
    )
    if not _are_ints(shape) or not _are_ints(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} is {reprlib.repr(item)}")
    if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) >= 2**53:
        raise ValueError(f"{name} has the shape {reprlib.repr(shape)}")
    names = {code: dtype for dtype, code in DTYPES.items()}
    if not isinstance(code, str) or code not in names:
        raise ValueError(f"{name} is of dtype {code!r:.20}, which MLX doesn't have")
    start, stop = offsets
    if not 0 <= start <= stop <= reader.nbytes - base or min(shape, default=0) < 0:
        raise ValueError(f"{name} lies outside the file")
    return Tensor(name, names[code], tuple(shape), stop - start, base + start)


def _are_ints(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int for value in values)
