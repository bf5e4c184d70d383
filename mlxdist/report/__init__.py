"""What a run has left, for people: where its time went, and an HTML page.

- trace: the Chrome trace of `mlxdist run --timeline`, checked.
- waiting: for what a rank waits, a late rank or the wire.
- breakdown: the parts of each rank's time.
- words: sentences on them.
- run_files: the files of a run's folder.
- charts: SVG.
- sections, page: the HTML page.
- comparison: one of several runs.

    from mlxdist.report import summarize
    summarize("runs/lm/timeline.json").parts

Nothing here imports MLX or MPI.
"""

from .breakdown import PARTS, Breakdown, RankBreakdown, Straggler, summarize
from .comparison import MOST_RUNS, comparison_of, number_rows, write_comparison
from .page import page_of, write_page
from .run_files import PAGE, Run, read_run
from .trace import read_trace
from .words import duration, sentences, share

__all__ = [
    "MOST_RUNS",
    "PAGE",
    "PARTS",
    "Breakdown",
    "RankBreakdown",
    "Run",
    "Straggler",
    "comparison_of",
    "duration",
    "number_rows",
    "page_of",
    "read_run",
    "read_trace",
    "sentences",
    "share",
    "summarize",
    "write_comparison",
    "write_page",
]
