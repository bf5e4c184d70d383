"""The loss scale: a factor on losses, so that fp16 gradients don't vanish.

A dynamic scale doubles after a number of steps without an overflow, and halves where
gradients overflow; such a step is skipped on all ranks (Micikevicius et al., "Mixed
Precision Training", ICLR 2018). All ranks see the same overflows, and so have the same
scale.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

_INITIAL_EXPONENT, _MAX_EXPONENT = 16, 24
GROWS_AFTER = 2000  # steps without an overflow

Option = Literal["dynamic"] | float | None


def option_problem(value: object) -> str | None:
    """Return why a loss scale is invalid, or None."""
    if value is None or value == "dynamic":
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 2.0**-126 <= float(value) < 2.0**127:  # type: ignore[arg-type]
        return None
    return (
        f'loss_scale is {value!r}; it must be "dynamic", a float32 number above 0, or '
        "None"
    )


class LossScale(Protocol):
    """The scale now, and what steps and overflows do to it."""

    @property
    def value(self) -> float:
        """The factor."""

    def stepped(self) -> None:
        """Count a step without an overflow."""

    def overflowed(self) -> bool:
        """Lower the scale; return False where it can't, and so is not the cause."""

    def counters(self) -> dict[str, int]:
        """Return what a checkpoint keeps."""

    def check(self, counters: dict[str, int]) -> None:
        """Raise ValueError if `restore` can't take what a checkpoint has."""

    def restore(self, counters: dict[str, int]) -> None: ...


class FixedScale:
    """A scale that stays; 1 where losses are not scaled."""

    def __init__(self, value: float):
        self._value = value

    @property
    def value(self) -> float:
        return self._value

    def stepped(self) -> None: ...

    def overflowed(self) -> bool:
        return False

    def counters(self) -> dict[str, int]:
        return {}

    def check(self, counters: dict[str, int]) -> None: ...

    def restore(self, counters: dict[str, int]) -> None: ...


class DynamicScale:
    """A power of two that follows the gradients' range."""

    def __init__(self) -> None:
        self._exponent = _INITIAL_EXPONENT
        self._steps = 0  # since the last overflow

    @property
    def value(self) -> float:
        return math.ldexp(1.0, self._exponent)

    def stepped(self) -> None:
        self._steps += 1
        if self._steps % GROWS_AFTER == 0:
            self._exponent = min(self._exponent + 1, _MAX_EXPONENT)

    def overflowed(self) -> bool:
        if self._exponent == 0:
            return False
        self._exponent, self._steps = self._exponent - 1, 0
        return True

    def counters(self) -> dict[str, int]:
        return {"loss_scale_log2": self._exponent, "loss_scale_good": self._steps}

    def check(self, counters: dict[str, int]) -> None:
        exponent = counters.get("loss_scale_log2", _INITIAL_EXPONENT)
        if not 0 <= exponent <= _MAX_EXPONENT:
            raise ValueError(
                f"its loss scale is 2**{exponent}, wanted 1 to 2**{_MAX_EXPONENT}"
            )

    def restore(self, counters: dict[str, int]) -> None:
        self._exponent = counters.get("loss_scale_log2", _INITIAL_EXPONENT)
        self._steps = counters.get("loss_scale_good", 0)


def make_loss_scale(option: Option) -> LossScale:
    """Return the scale that the option `loss_scale=` stands for."""
    if option == "dynamic":
        return DynamicScale()
    return FixedScale(1.0 if option is None else float(option))
