"""The factor by which losses are multiplied, so that fp16 gradients don't vanish.

It grows while all goes well, and is halved where gradients overflow; such a step is
skipped on all ranks (Micikevicius et al., "Mixed Precision Training", ICLR 2018).
"""

from __future__ import annotations

from typing import Literal

_FIRST, _LAST = 16, 24  # powers of two
GROWS_AFTER = 2000  # steps without an overflow


class LossScale:
    """The scale now. All ranks see the same overflows, and so have the same one.

    Args:
        option: "dynamic", or a number that stays.
    """

    def __init__(self, option: Literal["dynamic"] | float):
        self.option = option
        self.dynamic = option == "dynamic"
        self.exponent, self.good = _FIRST, 0
        self._fixed = 1.0 if option == "dynamic" else float(option)

    @property
    def value(self) -> float:
        return 2.0**self.exponent if self.dynamic else self._fixed

    def took_step(self) -> None:
        self.good += 1
        if self.dynamic and self.good % GROWS_AFTER == 0:
            self.exponent = min(self.exponent + 1, _LAST)

    def overflowed(self) -> bool:
        """Takes half of it; False where it can't, and so is not to blame."""
        if not self.dynamic or self.exponent == 0:
            return False
        self.exponent, self.good = self.exponent - 1, 0
        return True

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {"loss_scale_log2": self.exponent, "loss_scale_good": self.good}

    def restore(self, counters: dict[str, int]) -> None:
        self.exponent = counters.get("loss_scale_log2", _FIRST)
        self.good = counters.get("loss_scale_good", 0)
