"""Code that the benchmarks share: options, jobs, sampling, summaries, results, plots.

Each script of benchmarks/ answers one question, the first line of its docstring. The
words of all of them: a case is one setting to measure; contenders are compared in it; a
round takes samples of every contender, one after the other, so that all of them meet
the same noise of the machine.

A script that all ranks run says `RANKS = 2`; one without it starts its own jobs.
"""

from .environment import BENCHMARKS, RANK_PROGRAMS, ROOT, command, environment
from .options import (
    add_folder,
    add_hosts,
    add_rates,
    add_rounds,
    make_parser,
    positive,
    rate,
)
from .progress import Progress, show_progress
from .record import (
    Result,
    draw_result,
    format_ratio,
    make_console,
    print_table,
    record,
    write_json,
)
from .sampling import interleave, round_order, shared_folder, slowest
from .summary import Ratio, Summary, ratio_of, summarize
from .system import available_memory, other_load
from .verdict import bound_text, print_verdict, print_verdicts, verdict_of

__all__ = [
    "BENCHMARKS",
    "RANK_PROGRAMS",
    "ROOT",
    "Progress",
    "Ratio",
    "Result",
    "Summary",
    "add_folder",
    "add_hosts",
    "add_rates",
    "add_rounds",
    "available_memory",
    "bound_text",
    "command",
    "draw_result",
    "environment",
    "format_ratio",
    "interleave",
    "make_console",
    "make_parser",
    "other_load",
    "positive",
    "print_table",
    "print_verdict",
    "print_verdicts",
    "rate",
    "ratio_of",
    "record",
    "round_order",
    "shared_folder",
    "show_progress",
    "slowest",
    "summarize",
    "verdict_of",
    "write_json",
]
