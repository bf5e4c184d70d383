"""What the benchmarks share: sampling, statistics, the record of a run, its pictures.

Each script of this folder answers one question, which is its docstring's first line.
One that all ranks run says `RANKS = 2`; one without it starts its jobs by itself.
"""

from .environment import BENCHMARKS, ROOT, command, environment, other_load
from .record import (
    add_options,
    console,
    positive,
    print_table,
    rate,
    record,
    several,
    write_json,
)
from .sampling import interleave, order_of
from .summary import Ratio, Summary, ratio_of, summarize

__all__ = [
    "BENCHMARKS",
    "ROOT",
    "Ratio",
    "Summary",
    "add_options",
    "command",
    "console",
    "environment",
    "interleave",
    "order_of",
    "other_load",
    "positive",
    "print_table",
    "rate",
    "ratio_of",
    "record",
    "several",
    "summarize",
    "write_json",
]
