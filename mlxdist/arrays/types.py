"""Type names for arrays and trees, shared by every room above."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ..layout.paths import KeyPath

# mypy does not follow MLX's stubs, so it sees an mx.array, a dtype of MLX and a tree of
# arrays as Any. These names say which one is meant.
Array = Any  # an mx.array
Dtype = Any  # such as mx.float32
Tree = Any  # nested dicts, lists and tuples of arrays, as a module's parameters
Flat = dict[KeyPath, Array]
Named = dict[str, Array]  # by name, such as the arrays of a parameter's state
Pieces = list[Array]  # a rank's arrays of one bucket, in the bucket's order
Raw = NDArray[Any]  # a numpy view of an array's memory
