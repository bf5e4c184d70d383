"""Memory of this rank by the rules of layout/memory.py, and what would be less."""

from __future__ import annotations

from typing import cast

from ..arrays.dtypes import dtype_name
from ..layout.entries import Entry
from ..layout.memory import (
    MasterDtype,
    MeanDtype,
    Memory,
    MemoryOptions,
    rank_memory,
)
from ..layout.sharding import Plan
from ..layout.state_blocks import BLOCK
from . import masters, state
from .inner_optimizer import InnerOptimizer
from .options import Options
from .quantized_state import QuantizedState
from .state_layout import COPIES


class RankMemory:
    """The memory of a rank under a plan, without activations and the bare process.

    The state is what the wrapped optimizer has now: a user's own class may make some of
    it at its first step.

    Args:
        frozen: bytes of parameters that are not trained.
        overlaps: whether ranks compute while they communicate.
        rounds_means: whether the transport rounds means.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        inner: InnerOptimizer,
        options: Options,
        *,
        frozen: int,
        overlaps: bool,
        rounds_means: bool,
    ):
        self._plan, self._rank, self._frozen = plan, rank, frozen
        self._inner, self._options, self._overlaps = inner, options, overlaps
        self._rounds_means = rounds_means
        self._state = {
            path: {key: value for key, value in values.items() if key not in COPIES}
            for path, values in state.read(inner, plan.shard(rank)).items()
        }

    def at_peak(self, *, minimize: bool, accumulate: int) -> Memory:
        """Return the memory at the peak of a step.

        Args:
            minimize: of `minimize`, and not of `update`.
            accumulate: micro-batches of the step.
        """
        options = memory_options(
            self._options,
            minimize=minimize,
            accumulate=accumulate,
            overlaps=self._overlaps,
            rounds_means=self._rounds_means,
        )
        return rank_memory(
            self._plan, self._rank, options, self._state_bytes, frozen=self._frozen
        )

    def savings(self) -> dict[str, int]:
        """Return the bytes that other options would save on this rank, by their text.

        Those of options that change how a step is rounded come after `shard`.
        """
        memory = self.at_peak(minimize=True, accumulate=1)
        saved = {}
        if not self._plan.sharded:
            names = ("mean gradients", "state", "master weights", "EMA weights")
            whole = sum(memory[name] for name in names)
            saved["shard=True"] = whole - whole // self._plan.ranks
        if memory_options(self._options).master_dtype == "float32":
            saved['master_dtype="24bit"'] = memory["master weights"] * 3 // 4
        if self._options.quantized.dtype is None:
            saved['state_dtype="int8"'] = self._saved_by_8_bits()
        return {text: nbytes for text, nbytes in saved.items() if nbytes > 0}

    def _state_bytes(self, entry: Entry, elements: int) -> int:
        return state.nbytes({entry.path: self._state.get(entry.path, {})})

    def _saved_by_8_bits(self) -> int:
        """Return the bytes of this rank's moments, less those of codes and scales."""
        rule = QuantizedState("int8", self._options.float32_state)
        saved = 0
        for path, values in self._state.items():
            optimizer = self._inner.owner(path).optimizer
            for key in rule.moments(optimizer, self._plan.by_path[path]):
                blocks = -(-values[key].size // BLOCK)
                saved += values[key].nbytes - blocks * (BLOCK + 4)
        return saved


def memory_options(
    options: Options,
    *,
    minimize: bool = False,
    accumulate: int = 1,
    overlaps: bool = True,
    rounds_means: bool = True,
) -> MemoryOptions:
    """Return the options of an optimizer as the memory model has them."""
    master: MasterDtype | None = None
    if options.master_dtype is not None:
        master = "24bit" if options.master_dtype == masters.BITS24 else "float32"
    mean = options.mean_dtype
    return MemoryOptions(
        minimize=minimize,
        check_finite=options.check_finite,
        needs_norm=options.needs_norm,
        scales_gradients=options.scales_gradients,
        state_dtype=options.state_dtype,
        float32_state=options.float32_state,
        master_dtype=master,
        mean_dtype=None if mean is None else cast(MeanDtype, dtype_name(mean)),
        rounds_means=rounds_means,
        accumulate=accumulate,
        accumulate_sharded=options.accumulate_sharded,
        pairwise=options.reproducible,
        ema=options.ema_decay is not None,
        overlaps=overlaps,
    )
