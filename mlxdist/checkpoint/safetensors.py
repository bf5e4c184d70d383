"""The safetensors format: a header in JSON, and tensors one behind the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from .block_file import Reader
from .durable import DamagedError

_LARGEST_HEADER = 100 * 2**20  # as safetensors has it

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
    """A tensor of a safetensors file; `offset` counts from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int = 0


def header(tensors: Sequence[Tensor], about: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file that holds the tensors one behind the other.

    Raises:
        ValueError: where two tensors have one name.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "mlx", **about}}
    end = 0
    for name, dtype, shape, nbytes, _ in tensors:
        if name in content:
            raise ValueError(f"two arrays would be called {name!r} in a file; rename")
        content[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [end, end + nbytes],
        }
        end += nbytes
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    return len(text).to_bytes(8, "little") + text


def tensors_of(reader: Reader) -> list[Tensor]:
    """What a safetensors file holds, by its own header.

    Raises:
        DamagedError: where it is not one.
    """
    try:
        length = int.from_bytes(_part(reader, 0, 8), "little")
        if length > min(_LARGEST_HEADER, reader.nbytes - 8):
            raise ValueError(f"a header of {length} bytes")
        content = json.loads(_part(reader, 8, length))
        if not isinstance(content, dict):
            raise ValueError("its header is no object")
        content.pop("__metadata__", None)
        return [_tensor(reader, 8 + length, *item) for item in content.items()]
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{reader.path} is no safetensors file: {error}") from None


def _part(reader: Reader, offset: int, count: int) -> bytes:
    if reader.nbytes < offset + count:
        raise ValueError(f"it has {reader.nbytes} bytes")
    data = np.empty(count, np.uint8)
    reader.read(offset, data)
    return data.tobytes()


def _tensor(reader: Reader, base: int, name: str, told: object) -> Tensor:
    code, shape, place = (
        told.get(key) if isinstance(told, dict) else None
        for key in ("dtype", "shape", "data_offsets")
    )
    if not _whole(shape) or not _whole(place) or len(place) != 2:
        raise ValueError(f"{name} is {told!r:.80}")
    names = {known: dtype for dtype, known in DTYPES.items()}
    if not isinstance(code, str) or code not in names:
        raise ValueError(f"{name} is of dtype {code!r:.20}, which MLX has not")
    start, stop = place
    if not 0 <= start <= stop <= reader.nbytes - base or min(shape, default=0) < 0:
        raise ValueError(f"{name} lies outside of it")
    return Tensor(name, names[code], tuple(shape), stop - start, base + start)


def _whole(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(one) is int for one in numbers)
