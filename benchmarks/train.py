"""How many tokens a second does a transformer train on, end to end, beside upstream?

    mlxdist bench train --json benchmarks/results/train.json

The quickstart's transformer, larger, on the same text; AdamW in float32 on 2 ranks, one
thread each: on this machine, and on two virtual hosts with a wire of 1 Gbit/s between
them (root, Linux). Ours is sharded, with everything at its default. Upstream is
`nn.average_gradients` over MPI as installed with MLX's own optimizer, its update
compiled or plain.

Its tables of embeddings make wire and compute about equal, as they are for a model of a
billion parameters on machines that are a thousand times faster, with a wire of ten
times the speed. Both are in the result: compute, which is the loss and its gradients
alone on both ranks at once, and the wire's lower bound, 2(N-1)/N of the bytes of
gradients at the line's rate.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

import common
from common import plots
from common.jobs import mpi_job, running
from common.progress import Progress

from mlxdist.launcher import openmpi

sys.path[:0] = [str(common.ROOT), str(common.ROOT / "launch")]
from tests.support.cluster import VirtualCluster, bits_per_second  # noqa: E402

SCRIPT = common.BENCHMARKS / "ranks" / "train_rank.py"
OURS = ("ours", "ours replicated")
KINDS = (*OURS, "upstream", "upstream plain")
COLORS = (plots.OURS, plots.OURS_TOO, plots.THEIRS, plots.THEIRS_TOO)
PAIRS = [(ours, other) for ours in OURS for other in KINDS[2:]]
MACHINE = "one machine"


def main() -> None:
    args = parse_arguments()
    out = common.console()
    result: dict[str, Any] = {"settings": settings(args), "places": {}}
    for place in args.places:
        with contextlib.ExitStack() as stack:
            cluster = None
            if place != MACHINE:
                try:
                    cluster = stack.enter_context(VirtualCluster(args.n, rate=place))
                except RuntimeError as error:
                    out.print(f"{place}: left out: {error}")
                    continue
            result["places"][place] = measured = measure(out, args, place, cluster)
        show(out, place, measured)
        if args.json:
            common.write_json(args.json, __doc__.splitlines()[0], result)
    if args.json and result["places"]:
        with contextlib.suppress(ImportError):
            draw(args.json, result["places"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, default: Any, meaning: str, **options: Any) -> None:
        meaning += " (default: %(default)s)"
        kind = options.pop("type", common.positive)
        parser.add_argument(name, type=kind, default=default, help=meaning, **options)

    add("-n", 2, "ranks, and virtual hosts")
    add("--width", 256, "of the model, a multiple of 64")
    add("--layers", 2, "of the model")
    add("--table", 16384, "rows of its larger tables of embeddings")
    add("--rows", 1, "of text that a rank takes a step")
    add("--context", 128, "bytes in a row")
    add("--turns", 10, "of each contender")
    add("--steps", 3, "in a turn")
    places = [MACHINE, "1gbit"]
    meaning = f"{MACHINE!r}, or the rate of the wires between virtual hosts"
    add("--places", places, meaning, type=str, nargs="+")
    add("--contenders", list(KINDS), "which", type=str, nargs="+", choices=KINDS)
    common.add_options(parser)
    args = parser.parse_args()
    if args.quick:
        args.width, args.layers, args.table = 64, 1, 2048
        args.turns, args.steps = min(args.turns, 3), min(args.steps, 2)
    return args


def settings(args: argparse.Namespace) -> dict[str, int]:
    names = ("n", "width", "layers", "table", "rows", "context", "steps")
    return {name: getattr(args, name) for name in names}


def measure(
    out: Any, args: argparse.Namespace, place: str, cluster: VirtualCluster | None
) -> dict[str, Any]:
    """All contenders in turns at one place; samples are seconds a step."""
    model = (args.width, args.layers, args.table, args.rows, args.context)
    players = []
    for kind in args.contenders:
        found = {} if kind in OURS else {"MLX_MPI_LIBNAME": openmpi.find_libmpi() or ""}
        arguments = (kind, *map(str, model))
        players.append(
            mpi_job(kind, args.n, SCRIPT, *arguments, cluster=cluster, **found)
        )
    samples: dict[str, list[float]] = {kind: [] for kind in args.contenders}
    losses: dict[str, list[float]] = {kind: [] for kind in args.contenders}
    computing: list[float] = []
    load = common.other_load()
    total = args.turns * (len(players) + 1)
    with running(players) as jobs, Progress(out, total, place) as progress:
        for number in range(args.turns):
            for kind in common.order_of(args.contenders, number):
                told = jobs.request(kind, steps=args.steps, what="train")
                samples[kind].append(max(reply["seconds"] for reply in told))
                losses[kind].append(told[0]["loss"])
                progress.advance(kind)
            told = jobs.request(args.contenders[0], steps=args.steps, what="compute")
            computing.append(max(reply["seconds"] for reply in told))
            progress.advance("compute")
    check_that_all_learned_the_same(losses)
    nbytes = told[0]["bytes"]
    sent = 2 * (args.n - 1) / args.n * nbytes
    result = common.record(samples, PAIRS)
    tokens = args.n * args.rows * args.context
    return {
        "load_before": load,
        **result,
        "tokens_per_second": {
            kind: tokens / summary["median"]
            for kind, summary in result["summary"].items()
        },
        "gain_in_tokens_per_second": {
            pair: 1 / ratio["ratio"] for pair, ratio in result["ratios"].items()
        },
        "gradient_bytes": nbytes,
        "compute_seconds": statistics.median(computing),
        "wire_seconds_at_least": sent * 8 / bits_per_second(place) if cluster else None,
        "compute_samples": computing,
        "losses": losses,
    }


def check_that_all_learned_the_same(losses: dict[str, list[float]]) -> None:
    """They train one model on one text; sums differ in their rounding alone."""
    last = {kind: each[-1] for kind, each in losses.items()}
    if max(last.values()) > 1.02 * min(last.values()):
        sys.exit(f"train: error: contenders came to different losses: {last}")


def show(out: Any, place: str, measured: dict[str, Any]) -> None:
    rivals = [kind for kind in KINDS[2:] if kind in measured["summary"]]
    rows = []
    for kind, summary in measured["summary"].items():
        gains = measured["gain_in_tokens_per_second"]
        shown = [gains.get(f"{kind} / {rival}") for rival in rivals]
        rows.append(
            [
                kind,
                f"{measured['tokens_per_second'][kind]:,.0f}",
                f"{summary['median'] * 1e3:.0f}",
                *(f"{gain:.2f} x" if gain else "" for gain in shown),
                f"{measured['losses'][kind][-1]:.3f}",
            ]
        )
    columns = ["contender", "tokens/s", "ms a step", *(f"than {r}" for r in rivals)]
    common.print_table(out, place, [*columns, "last loss"], rows)
    wire = measured["wire_seconds_at_least"]
    told = "" if wire is None else f", wire at least {wire * 1e3:.0f} ms"
    out.print(
        f"a step's compute {measured['compute_seconds'] * 1e3:.0f} ms{told}, "
        f"gradients {measured['gradient_bytes'] / 1e6:.1f} MB\n"
    )


def draw(path: Path, places: dict[str, Any]) -> None:
    """Bars: tokens a second of each contender, place by place."""
    title = "Training a transformer on 2 ranks: tokens a second"
    with plots.picture(path, title, size=(8, 4.5), grid="y") as axes:
        width = 0.8 / len(KINDS)
        for offset, (kind, color) in enumerate(zip(KINDS, COLORS, strict=True)):
            found = [
                (place, measured["tokens_per_second"][kind])
                for place, measured in enumerate(places.values())
                if kind in measured["tokens_per_second"]
            ]
            at = [place + (offset - len(KINDS) / 2) * width for place, _ in found]
            heights = [height for _, height in found]
            bars = axes.bar(at, heights, width, align="edge", color=color, label=kind)
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=9, padding=2)
        names = [p if p == MACHINE else f"virtual hosts, {p} wire" for p in places]
        axes.set_xticks(range(len(places)), names)
        axes.set_ylabel("tokens/s")
        axes.legend(frameon=False, ncols=2, loc="upper right")
        axes.margins(y=0.25)


if __name__ == "__main__":
    main()
