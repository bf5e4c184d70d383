"""Mistakes in the report of a run: where its time went, and its page."""

from tests.mutations.mutation import Mutation, mistakes

BREAKDOWN = ("tests/report/test_breakdown.py",)
CHARTS = ("tests/report/test_charts.py",)
FILES = ("tests/report/test_run_files.py",)
COMPARISON = ("tests/report/test_comparison.py",)
HTML = ("tests/report/test_page.py",)
PAGE = ("tests/report/test_markup.py",)
TRACE = ("tests/report/test_trace.py",)
WAITING = ("tests/report/test_waiting.py",)

MUTATIONS = [
    # What a rank waits for
    Mutation("report/waiting.py", "if theirs.start > start:", "if False:", WAITING),
    Mutation(
        "report/waiting.py",
        "if current.is_complete and rank.overlaps:",
        "if rank.overlaps:",
        WAITING,
    ),
    Mutation(
        "report/waiting.py",
        "until = min(end, theirs.end) if current.is_complete else end",
        "until = end",
        WAITING,
    ),
    Mutation("report/waiting.py", "if oldest.start > now", "if False", WAITING),
    Mutation("report/waiting.py", "key=lambda x: x.end, default", "default", WAITING),
    Mutation(
        "report/waiting.py", "max(wait.start, result[-1].end)", "wait.start", WAITING
    ),
    # The parts of the time
    Mutation(
        "report/breakdown.py", 'parts["other"] = first - trace.start', "pass", BREAKDOWN
    ),
    Mutation(
        "report/breakdown.py", "now = max(now, waits[position].end)", "pass", BREAKDOWN
    ),
    Mutation(
        "report/breakdown.py",
        "others = max(1, len(traces) - 1)",
        "others = 1",
        BREAKDOWN,
    ),
    Mutation(
        "report/breakdown.py", "end = max(end, each.end)", "end = each.end", BREAKDOWN
    ),
    Mutation(
        "report/breakdown.py",
        '"computing" if _is_step(call) else "other"',
        '"computing"',
        BREAKDOWN,
    ),
    # Files of others
    Mutation(
        "report/breakdown.py", "max(0, traces[0].size - len(traces))", "0", BREAKDOWN
    ),
    Mutation("report/trace.py", '_number(event["dur"]) >= 0', "True", TRACE),
    Mutation(
        "report/trace.py",
        "is_number = isinstance(value, int | float) and not isinstance(value, bool)",
        "is_number = isinstance(value, int | float)",
        TRACE,
    ),
    Mutation("report/run_files.py", "skipped += 1", "pass", FILES),
    Mutation("report/run_files.py", "rows.sort(key", "sorted(rows, key", FILES),
    # The page
    Mutation("report/markup.py", "else text(x) for x", "else x for x", PAGE),
    Mutation("report/markup.py", '="{text(str(value))}"', '="{value}"', PAGE),
    Mutation("report/charts.py", "return abs(value) < _LARGEST", "return True", CHARTS),
    Mutation(
        "report/charts.py", 'pen = "L" if drawable(py) else "M"', 'pen = "L"', CHARTS
    ),
    *mistakes(
        "report/sections.py",
        ("tests/report/test_page.py", "tests/report/test_breakdown.py"),
        [
            ("step, value = finite", "step, value = points[0][0], 0.0"),
            ("key=lambda item: -item[1])[:3]", "key=lambda item: item[1])[:3]"),
            ("lines = [*run.problems, *run.missing]", "lines = run.missing"),
            ("known + breakdown.lost", "known"),
        ],
        ranks=(),
    ),
    *mistakes(
        "report/words.py",
        ("tests/report/test_page.py", "tests/report/test_breakdown.py"),
        [
            ('f"{100 * part / whole:.1f}%"', 'f"{part / whole:.1f}%"'),
            ("if seconds >= 120:", "if seconds >= 60 * 120:"),
            ("if not rank.is_complete]", "if rank.is_complete]"),
        ],
        ranks=(),
    ),
    Mutation("report/charts.py", "ranges = line.band or", "ranges = [] and", CHARTS),
    Mutation("report/run_files.py", "st_mtime < started", "st_mtime > started", FILES),
    Mutation("report/sections.py", "if finite == points[-1]:", "if True:", HTML),
    Mutation("report/page.py", 'message.startswith("ended ")', "False", HTML),
    Mutation(
        "report/comparison.py",
        "for c in configs])) > 1",
        "for c in configs]))",
        COMPARISON,
    ),
    Mutation("report/comparison.py", "if name not in _OF_EACH_RUN", "", COMPARISON),
    Mutation("report/charts.py", "        if line.points", "", COMPARISON),
]
