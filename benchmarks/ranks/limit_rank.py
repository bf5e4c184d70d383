"""One rank of `memory --limit`: takes steps, or is killed by the kernel.

limit_rank.py MODE TENSORS DTYPE STEPS, under mpirun.
"""

from __future__ import annotations

import sys

from ranks.memory_modes import MODES
from ranks.memory_rank import Training, join


def main() -> None:
    name, tensors, dtype, steps = sys.argv[1:]
    rank = join(MODES[name])
    training = Training(MODES[name], tensors, dtype)
    for number in range(int(steps)):
        training.step(number)
    if rank == 0:
        print(f"took {steps} steps")


if __name__ == "__main__":
    main()
