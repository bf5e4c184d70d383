"""The sections of a run's page, each empty where its file is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .breakdown import PARTS, Breakdown
from .charts import Band, Line, bar_chart, drawable, line_chart, number, step_number
from .markup import Markup, element, text
from .run_files import CONFIG, METRICS, Metrics, Run, flat
from .words import MEANINGS, duration, sentences, share

TRAINING_LOSS = ("train_loss", "loss")  # names: of RunLog, and of other files
_MOST_BARS = 64  # ranks
_LONGEST = 400  # characters of a value of the configuration
_LONG = 24  # characters from which on a cell of a table may be broken
_STATES = {"finished": "good", "failed": "bad", "killed": "bad", "ended": "warn"}

Rows = Iterable[Sequence[str]]


def figures(run: Run) -> Markup:
    """The run in a few numbers."""
    items = [
        element("div", element("dt", name), element("dd", value))
        for name, value in numbers(run).items()
    ]
    return element("dl", *items, cls="figures") if items else Markup("")


def numbers(run: Run) -> dict[str, str]:
    """Return the last values of a run's metrics, and what its ranks wait, as text."""
    pairs: list[tuple[str, str]] = []
    metrics = run.metrics
    if metrics is not None and metrics.rows:
        pairs.append(("steps", step_number(metrics.rows[-1]["step"])))
        for label, names, unit in (
            ("training loss", TRAINING_LOSS, ""),
            ("validation loss", ("val_loss",), ""),
            ("speed", ("tokens_per_second",), " tokens/s"),
            ("peak memory", ("peak_memory",), " GB"),
        ):
            value = _last(metrics, names, unit)
            if value:
                pairs.append((label, value))
    breakdown = run.breakdown
    if breakdown is not None:
        known = len(breakdown.ranks)
        of = f" of {known + breakdown.lost}" if breakdown.lost else ""
        pairs.append(("ranks", f"{known}{of}"))
        waiting = share(breakdown.parts["waiting"], breakdown.wall)
        pairs.append(("waiting for a late rank", waiting))
    return dict(pairs)


def _last(metrics: Metrics, names: Sequence[str], unit: str) -> str:
    """Return the last value of a metric as text; "" without one."""
    points, finite = metrics.points(*names), metrics.last_finite(*names)
    if finite is None:
        return "not finite" if points else ""
    step, value = finite
    shown = f"{number(value)}{unit}"
    if finite == points[-1]:
        return shown
    return f"not finite; {shown} at step {step_number(step)}"


def charts(metrics: Metrics | None) -> Markup:
    """Losses, speed, memory, and time of a step."""
    if metrics is None:
        return Markup("")
    train = metrics.points(*TRAINING_LOSS)
    validation = metrics.points("val_loss")
    memory, speed = _lines(metrics, "peak_memory"), _lines(metrics, "tokens_per_second")
    times = _lines(metrics, "step_time") + _lines(metrics, "wait_time")
    losses = [Line("training", train)] if train else []
    losses += [Line("validation", validation, dots=True)] if validation else []
    drawn = [
        chart("Loss", losses, "loss"),
        chart("Speed", speed, "tokens/s", zero=True),
        chart("Memory of a rank", memory, "peak memory (GB)", zero=True),
        chart("Time of a step", times, "seconds", zero=True),
    ]
    content = [part for part in drawn if part]
    if metrics.skipped:
        lines = "line" if metrics.skipped == 1 else "lines"
        note = f"{metrics.skipped:,} {lines} of {METRICS} could not be read."
        content.append(element("p", note, cls="note"))
    if not any(drawn):
        content.append(element("p", f"{METRICS} has no loss, speed or memory."))
    return element("div", *content, cls="charts")


def _lines(metrics: Metrics, name: str) -> list[Line]:
    """A metric's mean over the ranks, and its range over them."""
    points = metrics.points(name)
    if not points:
        return []
    least = dict(metrics.points(f"{name}_min"))
    most = dict(metrics.points(f"{name}_max"))
    band: Band = [(x, least[x], most[x]) for x, _ in points if x in least and x in most]
    label = name.replace("_", " ")
    label += ": mean and range of the ranks" if band else ""
    return [Line(label, points, band)]


def chart(
    title: str, lines: Sequence[Line], y_label: str, *, zero: bool = False
) -> Markup:
    """Return lines over steps, and a note on values that can't be drawn."""
    drawn = line_chart(title, lines, x_label="step", y_label=y_label, from_zero=zero)
    if not drawn:
        return drawn
    lost = sum(not drawable(y) for line in lines for _, y in line.points)
    note = f"Not finite, and so not drawn: {lost:,} of the values."
    notes = [element("p", note, cls="note")] if lost else []
    return element("figure", element("figcaption", title), drawn, *notes)


def time(breakdown: Breakdown | None) -> Markup:
    """Where the time of each rank went."""
    if breakdown is None:
        return Markup("")
    shown = breakdown.ranks[:_MOST_BARS]
    bars = {f"rank {rank.rank}": rank.parts for rank in shown}
    rest = f"The first {_MOST_BARS} ranks; the table has all."
    notes = (
        [element("p", rest, cls="note")] if len(breakdown.ranks) > len(shown) else []
    )
    keys = [
        element("li", element("i", cls=f"key {name}"), f"{name}: {MEANINGS[name]}")
        for name in PARTS
    ]
    head = ("rank", "host", "time", *PARTS, "waits for")
    rows = [
        (
            str(rank.rank),
            rank.host,
            duration(rank.wall),
            *(share(rank.parts[name], rank.wall) for name in PARTS),
            ", ".join(f"rank {x}: {duration(s)}" for x, s in _longest(rank.late)),
        )
        for rank in breakdown.ranks
    ]
    return section(
        "Where the time went",
        bar_chart("Parts of each rank's time", bars),
        *notes,
        element("ul", *keys, cls="legend"),
        *(element("p", sentence) for sentence in sentences(breakdown)),
        table(head, rows),
    )


def _longest(late: Mapping[int, float]) -> list[tuple[int, float]]:
    return sorted(late.items(), key=lambda item: -item[1])[:3]


def outcome(run: Run) -> Markup:
    """How the job ended, and what the guard saw of each rank."""
    seen = run.outcome
    if seen is None:
        return Markup("")
    facts = [
        ("exit code", str(seen.get("exit_code", "unknown"))),
        ("message", str(seen.get("message") or "all ranks finished")),
    ]
    for key in ("stopped_by", "lost_hosts", "restarts", "record"):
        if seen.get(key):
            facts += [(key.replace("_", " "), value) for _, value in flat(seen[key])]
    seconds = seen.get("seconds")
    if isinstance(seconds, int | float) and 0 <= seconds < 1e12:
        facts.append(("time", duration(float(seconds))))
    ranks = seen.get("ranks")
    rows = [
        [str(rank.get(key) or "") for key in ("state", "host", "step", "location")]
        + [str(rank.get("reason") or rank.get("signal") or "")]
        for rank in (ranks if isinstance(ranks, list) else ())
        if isinstance(rank, dict)
    ]
    numbered = [(str(index), *row) for index, row in enumerate(rows)]
    head = ("rank", "state", "host", "doing", "at", "reason")
    return section(
        "How the job ended", _facts(facts), table(head, numbered, states=True)
    )


def config(run: Run) -> Markup:
    """The configuration."""
    if run.config is None:
        return Markup("")
    pairs = [(name, short(value)) for name, value in flat(run.config)]
    content = _facts(pairs) if run.config else text(f"{CONFIG} is empty.")
    return section("Configuration", content)


def missing(run: Run) -> Markup:
    """What is not on the page, and why."""
    lines = [*run.problems, *run.missing]
    items = [element("li", line) for line in lines]
    return section("Not on this page", element("ul", *items)) if items else Markup("")


def short(value: str) -> str:
    """Return a value of the configuration, cut where it is long."""
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."


def section(title: str, *contents: str) -> Markup:
    """Return a section with its heading."""
    return element("section", element("h2", title), *contents)


def _facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in pairs
    ]
    return _scrolling(element("table", element("tbody", *rows), cls="facts"))


def table(head: Sequence[str], rows: Rows, *, states: bool = False) -> Markup:
    """Return a table; empty without rows.

    Args:
        states: color the cells that name the state of a rank.
    """
    heads = [element("th", name, scope="col") for name in head]
    body = [
        element("tr", *(element("td", cell, cls=_class(cell, states)) for cell in row))
        for row in rows
    ]
    if not body:
        return Markup("")
    head_row = element("thead", element("tr", *heads))
    return _scrolling(element("table", head_row, element("tbody", *body)))


def _class(cell: str, states: bool) -> str:
    state = _STATES.get(cell, "") if states else ""
    return f"short {state}".strip() if len(cell) < _LONG else state


def _scrolling(table: Markup) -> Markup:
    # With the keyboard too: it is focusable, and so it has a role and a name.
    return element(
        "div", table, cls="wide", tabindex=0, role="group", aria_label="Table"
    )
