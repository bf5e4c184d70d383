"""What `memory` compares: how a rank trains, and what the memory model says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxdist.layout import Entry, KeyPath
from mlxdist.layout.buckets import DEFAULT_BUCKET_SIZE
from mlxdist.layout.memory import Memory, MemoryOptions, largest_memory
from mlxdist.planner import Model

UPSTREAM = "upstream"


@dataclass(frozen=True)
class Mode:
    """A way to train: options of DistributedOptimizer, and which method steps.

    Attributes:
        options: of DistributedOptimizer; None for MLX alone.
        masters: master_dtype of 16-bit parameters.
    """

    options: dict[str, Any] | None
    minimize: bool = False
    masters: str = "float32"

    def optimizer_options(self, dtype: str) -> dict[str, Any]:
        """Return the options of DistributedOptimizer for parameters of a dtype."""
        assert self.options is not None
        options = {**self.options, "master_dtype": self.master_dtype(dtype)}
        if options["master_dtype"] == "float32":
            options["master_dtype"] = mx.float32
        return options

    def memory_options(self, dtype: str, *, overlaps: bool = False) -> MemoryOptions:
        """Return the same options for the memory model.

        Args:
            overlaps: whether ranks compute while they communicate: not on one host,
                but over native, which replicated state is exchanged by.
        """
        options = {**(self.options or {}), "master_dtype": self.master_dtype(dtype)}
        is_native = not options.pop("shard", True)
        overlaps = overlaps or is_native
        return MemoryOptions(minimize=self.minimize, overlaps=overlaps, **options)

    def master_dtype(self, dtype: str) -> str | None:
        return None if dtype == "float32" else self.masters

    @property
    def is_sharded(self) -> bool:
        return bool(self.options and self.options["shard"])


# All parameters but the norms have state in 8 bits here, the embedding too.
_INT8 = {"shard": True, "state_dtype": "int8", "float32_state": ()}
MODES = {
    UPSTREAM: Mode(None),
    "replicated update": Mode({"shard": False}),
    "sharded update": Mode({"shard": True}),
    "sharded minimize": Mode({"shard": True}, minimize=True),
    "minimize, 8-bit state": Mode(_INT8, minimize=True, masters="24bit"),
    "minimize, 8-bit state, unchecked": Mode(
        {**_INT8, "check_finite": False}, minimize=True, masters="24bit"
    ),
}


def predict(
    mode: Mode,
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    ranks: int,
    process: int,
) -> Memory:
    """Return the memory of the rank that needs most, by the model of `mlxdist plan`.

    Args:
        process: bytes of the bare process.
    """
    entries = tuple(
        Entry(KeyPath.parse(path), shape, dtype) for path, shape in shapes.items()
    )
    model = Model(entries, "adamw", DEFAULT_BUCKET_SIZE)
    options = mode.memory_options(dtype)
    return largest_memory(
        model.plan(ranks, "elements" if mode.is_sharded else "replicated"),
        options,
        lambda entry, elements: model.state_bytes(entry, elements, options),
        process=process,
    )
