"""How do the state of a rank, the time of a step and the tokens a second scale with N?

    mlxdist bench scaling --json benchmarks/results/scaling.json

The quickstart's transformer on its text, with AdamW in float32 and sharded state, on 1,
2 and 4 ranks of this machine, a process with one thread each. Each rank takes the same
rows a step, whatever their number (weak scaling). Ideal are 1/N of the state, the same
time of a step, and N times the tokens a second.

A rank needs a core. With more ranks than cores the figures of time show no speed: they
are marked, and have no ideal.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
from common import plots
from common.jobs import Job, RunningJobs, mpi_job, running
from rich.console import Console

from mlxdist.cli.number_format import short
from mlxdist.launcher.cores import usable_cores

SCRIPT = common.RANK_PROGRAMS / "train_rank.py"
LEGEND = """\
state: bytes of optimizer state, of the rank that has most, lower is better; of one
rank: over the state on one rank, ideal 1/N. ms a step: median of the slowest rank,
ideal as on one rank; processor: user and system time of a rank, their mean. tokens/s:
of all ranks, higher is better, ideal N times those of one. *: more ranks than cores."""


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    settings = ("ranks", "width", "layers", "table", "rows", "context", "steps")
    result = {
        "settings": {name: getattr(args, name) for name in settings},
        "cores": usable_cores(),
        "load_before": common.other_load(),
        **measure(console, args),
    }
    show(console, result)
    common.write_json(args.json, __doc__, result)
    common.draw_result(args.json, draw, result)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)

    def add(name: str, default: Any, text: str, **options: Any) -> None:
        text += " (default: %(default)s)"
        parser.add_argument(
            name, type=common.positive, default=default, help=text, **options
        )

    add("--ranks", [1, 2, 4], "numbers of ranks, with 1", nargs="+", metavar="N")
    add("--width", 256, "of the model, a multiple of 64")
    add("--layers", 2, "of the model")
    add("--table", 4096, "rows of its larger embedding tables")
    add("--rows", 1, "of text that a rank takes a step")
    add("--context", 128, "bytes in a row")
    add("--steps", 2, "in a round")
    common.add_rounds(parser, default=6)
    args = parser.parse_args()
    if args.quick:
        args.width, args.layers, args.table = 64, 1, 512
        args.rounds, args.ranks = min(args.rounds, 2), args.ranks[:2]
    args.ranks = sorted({1, *args.ranks})
    return args


def measure(console: Console, args: argparse.Namespace) -> common.Result:
    """Return interleaved samples for each number of ranks, in seconds a step."""
    names = {label(ranks): ranks for ranks in args.ranks}
    replies: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    with (
        running([job(ranks, args) for ranks in args.ranks]) as jobs,
        common.show_progress(console, args.rounds * len(names)) as progress,
    ):
        for number in range(args.rounds):
            for name in common.round_order(list(names), number):
                replies[name].append(train(jobs, name, args.steps))
                progress.advance(name)
    seconds = {
        name: [max(reply["seconds"] for reply in each) for each in rounds]
        for name, rounds in replies.items()
    }
    pairs = [(name, label(1)) for name in list(names)[1:]]
    result = common.record(seconds, pairs)
    tokens = args.rows * args.context
    return {
        **result,
        "processor_samples": {
            name: [[reply["processor"] for reply in each] for each in rounds]
            for name, rounds in replies.items()
        },
        "parameter_bytes": replies[label(1)][0][0]["bytes"],
        "state_bytes": {
            name: [reply["state"] for reply in rounds[0]]
            for name, rounds in replies.items()
        },
        "tokens_per_second": {
            name: ranks * tokens / result["summary"][name]["median"]
            for name, ranks in names.items()
        },
        "losses": {
            name: [each[0]["loss"] for each in rounds]
            for name, rounds in replies.items()
        },
    }


def label(ranks: int) -> str:
    return f"{ranks} rank{'s' * (ranks > 1)}"


def job(ranks: int, args: argparse.Namespace) -> Job:
    settings = (args.width, args.layers, args.table, args.rows, args.context)
    return mpi_job(label(ranks), ranks, SCRIPT, "ours", *map(str, settings))


def train(jobs: RunningJobs, name: str, steps: int) -> list[dict[str, Any]]:
    return jobs.request(name, steps=steps, part="train")


def show(console: Console, result: common.Result) -> None:
    rows = []
    for ranks in result["settings"]["ranks"]:
        name = label(ranks)
        of_one, speed = against_one(result, name)
        processor = [sum(each) / ranks for each in result["processor_samples"][name]]
        seconds = result["summary"][name]["median"]
        rows.append(
            [
                name + " *" * (ranks > result["cores"]),
                f"{max(result['state_bytes'][name]) / 1e6:.3f}",
                f"{of_one:.4f}",
                f"{seconds * 1e3:.0f}",
                f"{common.summarize(processor).median * 1e3:.0f}",
                f"{result['tokens_per_second'][name]:,.0f}",
                f"{speed:.2f} x",
            ]
        )
    columns = ["", "state MB", "of one rank", "ms a step", "processor ms", "tokens/s"]
    title = f"{result['parameter_bytes'] / 1e6:.1f} MB of parameters, AdamW, sharded"
    common.print_table(console, title, [*columns, "than one rank"], rows, LEGEND)
    for ranks in result["settings"]["ranks"][1:]:
        common.print_verdict(console, verdict(result, ranks))


def against_one(result: common.Result, name: str) -> tuple[float, float]:
    """Return a rank's state and all ranks' tokens/s, over those of one rank."""
    states, rates = result["state_bytes"], result["tokens_per_second"]
    one = label(1)
    return max(states[name]) / max(states[one]), rates[name] / rates[one]


def verdict(result: common.Result, ranks: int) -> str:
    """Return what the figures of a number of ranks say, in words."""
    of_one, speed = against_one(result, label(ranks))
    text = f"{label(ranks)}: {of_one:.4f} of the state of one rank, ideal {1 / ranks:g}"
    if ranks > result["cores"]:
        return f"{text}; more ranks than cores, which shows no speed"
    low, high = result["ratios"][f"{label(ranks)} / {label(1)}"]["interval"]
    interval = f"{ranks / high:.2f} to {ranks / low:.2f}"
    return f"{text}; {speed:.2f} times its tokens/s ({interval}), ideal {ranks}"


def draw(path: Path, result: common.Result) -> None:
    """Draw state, step time and tokens/s over the number of ranks, with the ideal."""
    ranks = result["settings"]["ranks"]
    names = [label(number) for number in ranks]
    megabytes = [max(result["state_bytes"][name]) / 1e6 for name in names]
    times = [result["summary"][name]["median"] * 1e3 for name in names]
    rates = [result["tokens_per_second"][name] for name in names]
    within = [number for number in ranks if number <= result["cores"]]
    title = "Sharded AdamW on N ranks, the same rows on each"
    with plots.figure(path, title, size=(6.2, 7.4), rows=3, grid="y") as panels:
        state, step, speed = panels
        draw_panel(state, ranks, megabytes, "o", plots.BLUE)
        draw_ideal(state, ranks, [megabytes[0] / number for number in ranks])
        draw_timed(step, ranks, times, within, 7)
        draw_ideal(step, within, [times[0]] * len(within))
        draw_timed(speed, ranks, rates, within, -16)
        draw_ideal(speed, within, [rates[0] * number for number in within])
        units = ("MB of state a rank", "ms a step", "tokens/s of all ranks")
        for axes, unit in zip(panels, units, strict=True):
            axes.set_xscale("log", base=2)
            axes.set_xticks(ranks, [str(number) for number in ranks])
            axes.minorticks_off()
            axes.set_ylim(0, 1.18 * axes.get_ylim()[1])
            axes.set_ylabel(unit)
            axes.legend(frameon=False, fontsize=9)
        speed.set_xlabel("ranks N")


def draw_timed(
    axes: Any, ranks: list[int], values: list[float], within: list[int], offset: int
) -> None:
    """Draw figures of time; those of more ranks than cores apart.

    Args:
        offset: of their labels, upwards in points, away from the ideal.
    """
    count = len(within)
    draw_panel(axes, within, values[:count], "o", plots.BLUE, offset)
    if beyond := ranks[count:]:
        draw_panel(axes, beyond, values[count:], "x", plots.GRAY, offset)


def draw_panel(
    axes: Any,
    ranks: list[int],
    values: list[float],
    marker: str,
    color: str,
    offset: int = 7,
) -> None:
    names = {"o": "measured", "x": "more ranks than cores: shows no speed"}
    line = "-" if marker == "o" else ""
    axes.plot(ranks, values, marker + line, color=color, label=names[marker])
    options = {"textcoords": "offset points", "xytext": (0, offset), "ha": "center"}
    for number, value in zip(ranks, values, strict=True):
        axes.annotate(short(value), (number, value), color=color, **options)


def draw_ideal(axes: Any, ranks: list[int], values: list[float]) -> None:
    axes.plot(ranks, values, "--", color=plots.ORANGE, label="ideal")


if __name__ == "__main__":
    main()
