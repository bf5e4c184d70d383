"""How much memory and time does mlx-lm's training take, compared with mlx-lm alone?

    mlxdist bench fine_tuning --json fine_tuning.json

Fine-tunes a Llama with AdamW on two ranks of this machine, with a row of 8 tokens on
each: all parameters ("full"), or adapters ("lora"). The contenders are mlx-lm's
own `train` in its distributed mode, and `mlxdist.integrations.mlx_lm.train` with
sharded state, whose steps are compiled, or taken by `minimize`. Each is a job by
itself; samples are interleaved. A sample is two steps in a row, as `train` itself
reports them.

"peak" is MLX's own figure of its most memory, and "resident" what Linux counted for the
whole process, without what it had before the model was made; both of the rank with
most. Over mlx-lm's, memory of a full fine-tuning should be at most 0.8, and tokens per
second at least 1.0. Resident memory needs Linux.
"""

from __future__ import annotations

import argparse

import common
from common.jobs import mpi_job, running, upstream_environment
from ranks.fine_tuning_rank import CONTENDERS, UPSTREAM
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "fine_tuning_rank.py"
JOB_RANKS = 2
LEGEND = (
    "ms: a step of the slowest rank, CPU ms: processor time of both ranks; "
    "peak: MLX's own, resident: of the process; low is better"
)
MEMORY = ("peak_memory", "resident")


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    result: common.Result = {"cases": {}}
    for kind in args.kinds:
        result["cases"][kind] = measure(console, kind, args)
        show(console, kind, result["cases"][kind])
        common.write_json(args.json, __doc__, result)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    kinds = ("full", "lora")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=CONTENDERS,
        metavar="NAME",
        help=f"of {', '.join(CONTENDERS)}",
    )
    parser.add_argument("--width", type=common.positive, help="of the model")
    parser.add_argument("--layers", type=common.positive, help="of the model")
    common.add_rounds(parser)
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.width = args.width or (64 if args.quick else 512)
    args.layers = args.layers or (1 if args.quick else 8)
    return args


def measure(console: Console, kind: str, args: argparse.Namespace) -> common.Result:
    """Return the samples of one kind of fine-tuning."""
    names = args.contenders
    model = (kind, str(args.width), str(args.layers))
    jobs = [
        mpi_job(
            name,
            JOB_RANKS,
            SCRIPT,
            name,
            *model,
            environment=upstream_environment() if name == UPSTREAM else None,
        )
        for name in names
    ]
    samples: dict[str, dict[str, list[float]]] = {}
    with running(jobs) as started:
        total = args.rounds * len(names)
        with common.show_progress(console, total, kind) as progress:
            for number in range(args.rounds):
                for name in common.round_order(list(names), number):
                    add(samples, name, started.request(name))
                    progress.advance(name)
    pairs = [(name, UPSTREAM) for name in names if name != UPSTREAM]
    timed = {c: common.record(samples[c], pairs) for c in ("wall", "processor")}
    last = {figure: {n: max(samples[figure][n]) for n in names} for figure in MEMORY}
    return {**timed, **last, "loss": samples["loss"]}


def add(
    samples: dict[str, dict[str, list[float]]],
    name: str,
    replies: list[dict[str, float]],
) -> None:
    """Add the figures of all ranks."""
    combine = {"processor": sum, "loss": min}
    for figure in replies[0]:
        value = combine.get(figure, max)(reply[figure] for reply in replies)
        samples.setdefault(figure, {}).setdefault(name, []).append(value)


def show(console: Console, kind: str, case: common.Result) -> None:
    rows = []
    wall, processor = case["wall"], case["processor"]
    for name in wall["summary"]:
        pair = f"{name} / {UPSTREAM}"
        row = [name]
        for record in (wall, processor):
            row.append(f"{1e3 * record['summary'][name]['median']:.0f}")
            ratio = record["ratios"].get(pair)
            row.append(common.format_ratio(ratio) if ratio else "")
        for figure in MEMORY:
            row.append(f"{case[figure][name] / 1e6:.0f}")
            before = case[figure].get(UPSTREAM)
            row.append(f"{case[figure][name] / before:.2f}" if before else "")
        rows.append(row)
    columns = ["", "ms", "ratio", "CPU ms", "ratio", "peak MB", "ratio"]
    columns += ["resident MB", "ratio"]
    common.print_table(console, f"{kind}: a step", columns, rows, LEGEND)
    common.print_verdicts(console, wall["ratios"])


if __name__ == "__main__":
    main()
