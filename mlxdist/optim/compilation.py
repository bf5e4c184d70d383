"""Compiled kernels of the local update: when they are made, and by which rank first."""

from __future__ import annotations

import mlx.core as mx

from ..arrays import device
from ..arrays.dtypes import dtype_of
from ..comm.agreement import agree
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Piece, Plan
from ..layout.state_blocks import BLOCK
from ..world.world import World
from .inner_optimizer import InnerOptimizer, Leaf
from .options import Options
from .piece_step import PieceStep
from .quantized_step import Moments, State, put_quantized, update_dtype
from .user_warning import warn_user
from .weight_copies import WeightCopies

# Bytes of parameters from which on the update is compiled, which takes about a second
# for each kernel. It depends on the model's whole size alone, so that it is the same on
# any number of ranks: not all devices give the same bits compiled.
COMPILED_FROM = 2**20
# Kernels contain the hyperparameters. After one has changed, steps run on MLX's own
# kernels until none has changed for so many steps.
COMPILED_AGAIN_AFTER = 100


def compile_update(
    world: World, name: str, inner: InnerOptimizer, plan: Plan, options: Options
) -> bool:
    """Compile the kernels that steps will need, if the model is large enough.

    Called by all ranks. One rank of each host compiles first. Ranks of a host share
    MLX's folder of compiled kernels, and a kernel that another rank is still writing
    can't be loaded.

    Returns:
        Whether it worked on all ranks. Warns on a rank where it did not.
    """
    if sum(entry.nbytes for entry in plan.entries) < COMPILED_FROM:
        return False
    error = _compile_error(inner, plan, options) if world.is_first_on_host else None
    agree(world.control, f"{name}.init")
    error = error or _compile_error(inner, plan, options)
    failures = agree(world.control, f"{name}.init", number=float(error is not None))
    if error is not None:
        warn_user(
            f"rank {world.rank} on {world.host} can't compile the optimizer's update, "
            "so that all ranks update with MLX's own kernels, which takes up to three "
            f"times as long: {error}. On Linux MLX needs g++ on PATH and a TMPDIR that "
            "it can write to"
        )
    return not any(failures)


def _compile_error(inner: InnerOptimizer, plan: Plan, options: Options) -> str | None:
    """Compile a kernel for each leaf and dtype; return what failed.

    A step on a few elements compiles the kernel of all sizes. On a CPU that calls a C++
    compiler and takes about a second for each.
    """
    copies = options.copies
    kinds = {
        (inner.owner(entry.path).at, entry.dtype, inner.moments(entry)): entry.path
        for entry in plan.entries
    }
    try:
        for (_, dtype, moments), path in kinds.items():
            leaf = inner.owner(path)
            wide = update_dtype(copies.update_dtype(dtype_of(dtype)), moments)
            if leaf.can_be_compiled and device.fits_one_kernel(wide):
                scales = options.scales_gradients
                _compile(leaf, dtype, copies, moments, scales=scales)
    except RuntimeError as error:
        return str(error)
    return None


def _compile(
    leaf: Leaf, dtype: str, copies: WeightCopies, moments: Moments, *, scales: bool
) -> None:
    size = 2 * BLOCK
    piece = Piece(Entry(KeyPath(), (size,), dtype), 0, size, 0)
    ones = mx.ones(size, dtype_of(dtype))
    state: State = {}
    leaf.optimizer.init_single(ones.astype(copies.update_dtype(ones.dtype)), state)
    put_quantized(state, moments)
    copies.add(KeyPath(), ones, state)
    step = PieceStep(leaf, "elements", [piece], copies, moments, compiled=True)
    scale = mx.array(1.0) if scales else None
    mx.eval(step([mx.ones(size)], [ones], [state], scale), state)
