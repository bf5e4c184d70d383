"""Where saved state goes: as it was saved, or converted.

Moments in 8 bits are two saved arrays, codes and scales, which are read together. They
are loaded into a run with float32 moments, and float32 moments into a run with 8 bits.
So are float32 masters and the corrections of masters of 24 bits, which are converted by
means of the saved parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import mlx.core as mx

from ..arrays import float24
from ..arrays.blockwise import BLOCK, Kind, kind_of, quantize, widen
from ..arrays.dtypes import dtype_name
from ..arrays.types import Array
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..optim import moments
from ..optim.masters import CORRECTION, KEY
from ..optim.moments import Pair
from ..optim.quantized_state import CODES, SCALES
from ..optim.resumable_state import ResumableState, StateArray
from .manifest import Identity, SavedArray
from .target import Span, Target, Targets, mismatch

_ByIdentity = Mapping[Identity, SavedArray]
_OTHER_MASTER = {KEY: CORRECTION, CORRECTION: KEY}
_FLOATS = ("float32", "bfloat16", "float16")


def find_state(
    by_identity: _ByIdentity, state: ResumableState, targets: Targets
) -> Iterator[str]:
    """Add a target for each array of this rank's state; yield what does not fit."""
    saved: dict[str, dict[str, SavedArray]] = defaultdict(dict)
    for (kind, text, key), array in by_identity.items():
        if kind == "optimizer":
            saved[text][key] = array
    for path, parts in state.arrays().items():
        found = _Finder(state, path, saved.get(path.text, {}), targets)
        pairs = moments.pairs_of(parts)
        for moment, pair in pairs.items():
            yield from found.pair(moment, pair, parts[pair.codes], parts[pair.scales])
        for key in parts.keys() - {key for pair in pairs.values() for key in pair}:
            yield from found.array(key, parts[key])


def moment_blocks(arrays: Sequence[SavedArray]) -> dict[Identity, SavedArray]:
    """Return the scales of each saved array of codes, by its identity."""
    by_identity = {array.identity: array for array in arrays}
    blocks: dict[Identity, SavedArray] = {}
    for (kind, path, key), array in by_identity.items():
        part = moments.part_of(key) if kind == "optimizer" else None
        if part is not None and part[1] == CODES and _are_blocks(array, CODES):
            scales = by_identity.get((kind, path, moments.pair_of(part[0]).scales))
            if scales is not None:
                blocks[kind, path, key] = scales
    return blocks


def companions(
    arrays: Sequence[SavedArray], master_key: str
) -> dict[Identity, SavedArray]:
    """Return what is read together with some saved arrays, the same on all ranks.

    Args:
        master_key: of what this run keeps of masters.
    """
    by_identity = {array.identity: array for array in arrays}
    masters = {
        identity: by_identity["parameters", path, ""]
        for identity in by_identity
        for kind, path, key in [identity]
        if kind == "optimizer"
        and _OTHER_MASTER.get(key) == master_key
        and ("parameters", path, "") in by_identity
    }
    return masters | moment_blocks(arrays)


def alternatives(key: str) -> tuple[str, ...]:
    """Return the keys of saved arrays of which a key's array can be made."""
    part = moments.part_of(key)
    if part is not None:
        return (part[0],)
    if key in _OTHER_MASTER:
        return (_OTHER_MASTER[key],)
    return moments.pair_of(key)


def pair_problems(arrays: Sequence[SavedArray]) -> Iterator[str]:
    """Yield what is wrong with saved moments in 8 bits."""
    by_identity = {array.identity: array for array in arrays}
    for (kind, path, key), array in by_identity.items():
        part = moments.part_of(key) if kind == "optimizer" else None
        if part is None or not _are_blocks(array, part[1]):
            continue
        pair = moments.pair_of(part[0])
        codes, scales = (by_identity.get((kind, path, other)) for other in pair)
        name = f"the state {part[0]} of {path}"
        if codes is None:
            yield f"{name} has scales and no codes"
        elif scales is None:
            yield f"{name} has codes and no scales"
        elif part[1] == CODES and scales.shape != (codes.shape[0],):
            yield (
                f"{name} has {codes.shape[0]} blocks of codes, and "
                f"{list(scales.shape)} scales"
            )


def _are_blocks(array: SavedArray, part: str) -> bool:
    """Whether a saved array is codes or scales, and not a user's own of that name."""
    if part == SCALES:
        return array.dtype == "float32" and len(array.shape) == 1
    return array.dtype in ("int8", "uint8") and array.shape[1:] == (BLOCK,)


class _Finder:
    """Finds what is saved of one parameter's state."""

    def __init__(
        self,
        state: ResumableState,
        path: KeyPath,
        saved: Mapping[str, SavedArray],
        targets: Targets,
    ):
        self._state, self._path = state, path
        self._entry = state.plan.by_path[path]
        self._saved, self._targets = saved, targets

    def pair(
        self, moment: str, pair: Pair, codes: StateArray, scales: StateArray
    ) -> Iterator[str]:
        """Find a moment that is in 8 bits here."""
        put = partial(self._put_pair, pair)
        wide = self._saved.get(moment)
        if _is_wide(wide, self._entry):
            quantize = partial(_quantized, kind_of(codes.array))
            size = codes.stop - codes.start
            self._add(moment, Target(codes.start, codes.stop, (size,), put, quantize))
            return
        if wide is not None and pair.codes not in self._saved:
            wanted = f"float32{list(self._entry.shape)}"
            yield str(mismatch(wide, wanted, f"state {moment} of {self._path}"))
            return
        for key, part in ((pair.codes, codes), (pair.scales, scales)):
            wanted = f"{dtype_name(part.array.dtype)}{list(part.shape)}"
            name = f"state {key} of {self._path}"
            problem = mismatch(self._saved.get(key), wanted, name)
            if problem is not None:
                yield problem
                return
        shape, span = tuple(codes.array.shape), (scales.start, scales.stop)
        target = Target(codes.start, codes.stop, shape, put, _both, (span,))
        self._add(pair.codes, target)

    def array(self, key: str, part: StateArray) -> Iterator[str]:
        """Find an array that is one here."""
        saved = self._saved.get(key)
        if saved is None and (
            self._of_master(key, part)
            or self._of_blocks(key, part)
            or self._state.may_lack(key)
        ):
            return
        elements = None if saved is None else _elements(saved, part)
        if may_be_number(saved) and self._state.holds_number(self._path, key):
            elements = 0, 1
        shape = tuple(part.array.shape)
        if elements is not None:
            self._add(key, Target(*elements, shape, partial(self._put, key)))
            return
        wanted = f"{dtype_name(part.array.dtype)}{list(shape)}"
        yield str(mismatch(saved, wanted, f"state {key} of {self._path}"))

    def _of_master(self, key: str, part: StateArray) -> bool:
        """Add a target for what is kept of a master, if that follows from the rest.

        A correction that is here is of other parameters than those that are loaded.
        """
        other, span = _OTHER_MASTER.get(key, ""), (part.start, part.stop)
        shape, put = tuple(part.array.shape), partial(self._put, key)
        if other in self._saved:
            convert = _master if key == KEY else _correction
            self._add(other, Target(*span, shape, put, convert, (span,)))
        elif key == CORRECTION:
            zeros = partial(mx.zeros, shape, mx.int8)
            self._add(key, Target(0, 0, shape, put, zeros))
        return other in self._saved or key == CORRECTION

    def _of_blocks(self, key: str, part: StateArray) -> bool:
        """Add a target for a float32 moment that was saved in 8 bits, if it was."""
        pair = moments.pair_of(key)
        if not self._has_blocks(pair):
            return False
        first, last = part.start // BLOCK, -(-part.stop // BLOCK)
        skipped = part.start - first * BLOCK

        def convert(codes: Array, scales: Array) -> Array:
            values = widen(codes, scales)[skipped : skipped + part.array.size]
            return values.reshape(part.array.shape).astype(part.array.dtype)

        span, shape = (first * BLOCK, last * BLOCK), (last - first, BLOCK)
        put, scales = partial(self._put, key), ((first, last),)
        self._add(pair.codes, Target(*span, shape, put, convert, scales))
        return True

    def _has_blocks(self, pair: Pair) -> bool:
        """Whether the codes and scales of this parameter's elements were saved."""
        codes, scales = (self._saved.get(key) for key in pair)
        blocks, rest = divmod(self._entry.size, BLOCK)
        return (
            codes is not None
            and scales is not None
            and not rest
            and (codes.shape, scales.shape) == ((blocks, BLOCK), (blocks,))
            and codes.dtype in ("int8", "uint8")
        )

    def _add(self, key: str, target: Target) -> None:
        self._targets["optimizer", self._path.text, key] = target

    def _put(self, key: str, array: Array) -> None:
        self._state.put(self._path, key, array)

    def _put_pair(self, pair: Pair, arrays: Sequence[Array]) -> None:
        for key, array in zip(pair, arrays, strict=True):
            self._put(key, array)


def _is_wide(saved: SavedArray | None, entry: Entry) -> bool:
    """Whether an array is a moment of all of a parameter's elements."""
    return saved is not None and saved.shape == entry.shape and saved.dtype in _FLOATS


def _quantized(kind: Kind, values: Array) -> list[Array]:
    return list(quantize(values, kind))


def _both(codes: Array, scales: Array) -> list[Array]:
    return [codes, scales]


def _master(correction: Array, parameter: Array) -> Array:
    return float24.join(parameter.reshape(correction.shape), correction)


def _correction(master: Array, parameter: Array) -> Array:
    return float24.correction(parameter.reshape(master.shape), master)


def may_be_number(saved: SavedArray | None) -> bool:
    """Return whether a saved array may have been a Python number.

    The dtype of a number is no mismatch: it may be an int before and a float after, and
    plain files have a float as float32.
    """
    if saved is None or saved.shape:
        return False
    return saved.dtype in ("bool", "int64", "float64", "float32")


def _elements(saved: SavedArray, part: StateArray) -> Span | None:
    """Return the elements of a saved array that are this rank's part, if it fits."""
    if saved.dtype != dtype_name(part.array.dtype):
        return None
    if saved.shape == tuple(part.array.shape):
        return 0, saved.size
    return (part.start, part.stop) if saved.shape == part.shape else None
