"""Names of the array types that all rooms above share."""

from __future__ import annotations

from typing import Any

# mypy does not follow MLX's stubs, so an mx.array is Any to it. These names keep what
# is meant readable.
Array = Any  # an mx.array
Tree = Any  # nested dicts, lists and tuples of arrays, as MLX's modules hold them
Flat = dict[str, Array]  # path -> array
Pieces = list[Array]  # a bucket's arrays, in the bucket's order
