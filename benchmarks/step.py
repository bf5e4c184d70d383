"""How long from gradients ready to parameters ready, beside what one would use instead?

    mlxdist bench step --json benchmarks/results/step.json

AdamW on 2 ranks, one thread each. Contenders take turns, each a job of its own that
sleeps meanwhile: ours; upstream, which is `nn.average_gradients` and MLX's optimizer
compiled, as installed and tuned, with our allocator setting; and PyTorch, where it is
installed, with gloo and either fused AdamW or ZeroRedundancyOptimizer. A sample is the
time of the slowest rank, from gradients evaluated to parameters and state evaluated.

With 50M and 200M, memory is measured in the same launch by STREAM's copy and add on all
ranks at once, and set against the bytes that an ideal sharded step moves. For G bytes
of float32 gradients on 2 ranks, each rank
    reads the other's half of its gradients, G/2, and writes it where that one can
    read it, G/2, reads there what it gets, G/2, and its own half, G/2;
    reads parameters and both moments of its half, 3/2 G, and writes them, 3/2 G;
    writes its new parameters where the other can read them, G/2, reads there what it
    gets, G/2, and writes that among its own, G/2:
6.5 G in all. Where what is passed on stays in a shared cache, 4.5 G are left.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from common import step_cases as plan
from common import step_report as report
from common.jobs import mpi_job, running
from common.progress import Progress
from ranks.single_rank import PAIRS

WORLD_OF_ONE = "world of one"
SOLO_ROUNDS = {"1M": 200, "10M": 60, "50M": 20}
SOLO_SIZES = tuple(SOLO_ROUNDS)


def main() -> None:
    args = parse_arguments()
    out = common.console()
    result = report.so_far(args.json) if args.only else {}
    result = {"cases": {}, WORLD_OF_ONE: {}, **result}
    room = report.available_memory() * 9 // 10
    for case in plan.cases(args.only, quick=args.quick):
        case = case._replace(rounds=args.turns or case.rounds)
        launches = plan.launches(case, args.contenders, args.n, room)
        for number, launch in enumerate(launches, 1):
            name = case.name if number == 1 else f"{case.name}, launch {number}"
            result["cases"][name] = measured = measure(out, case, launch, args.n)
            report.print_case(out, name, measured)
            save(args.json, result)
    if not args.only or WORLD_OF_ONE in args.only:
        for tensors in SOLO_SIZES[: 1 if args.quick else None]:
            rounds = 10 if args.quick else SOLO_ROUNDS[tensors]
            result[WORLD_OF_ONE][tensors] = solo = measure_solo(out, tensors, rounds)
            report.print_solo(out, tensors, solo)
            save(args.json, result)
    if args.json:
        report.draw(args.json, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-n", type=common.positive, default=2, help="how many ranks (default: 2)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="cases whose names contain one of these, such as 50M, bfloat16, "
        f"'10M float32', 2000x1000 or '{WORLD_OF_ONE}'; FILE keeps the others",
    )
    parser.add_argument(
        "--contenders", nargs="+", default=[], metavar="NAME", help="only some"
    )
    parser.add_argument(
        "--turns", type=common.positive, help="of each contender in each case"
    )
    common.add_options(parser)
    args = parser.parse_args()
    try:
        args.contenders = plan.contenders(args.contenders)
    except ValueError as error:
        parser.error(str(error))
    if not plan.cases(args.only, quick=args.quick) and WORLD_OF_ONE not in args.only:
        parser.error(f"no case has any of {args.only} in its name")
    return args


def measure(out: Any, case: plan.Case, launch: plan.Launch, ranks: int) -> Any:
    """One launch: turns of all contenders, then phases, and the speed of memory."""
    names, load = launch.names, common.other_load()
    samples: dict[str, list[float]] = {name: [] for name in names}
    norms: dict[str, float] = {}
    phases: dict[str, Any] = {}
    stream: dict[str, list[float]] = {"copy": [], "add": []}
    warmup = 3 if launch.trim else 1
    ours = [name for name in names if name in plan.MLXDIST]
    measures_memory = case.nbytes > 100e6 and case.dtype == "float32"
    with tempfile.TemporaryDirectory(prefix="mlxdist-bench-") as folder:
        everyone = [*names, plan.STREAM] if measures_memory else names
        players = [plan.job(n, case, ranks, Path(folder)) for n in everyone]
        total = case.rounds * len(names) + len(ours)
        with running(players) as jobs, Progress(out, total, case.name) as progress:
            ask = {"steps": case.steps, "warmup": warmup, "trim": launch.trim}
            for number in range(case.rounds):
                for name in common.order_of(names, number):
                    told = jobs.request(name, **ask, phases=False)
                    every = (reply["seconds"] for reply in told)
                    samples[name] += map(max, zip(*every, strict=True))
                    norms[name] = told[0].get("norm", 0.0)
                    progress.advance(name)
                if measures_memory:
                    for told in jobs.request(plan.STREAM, steps=1):
                        for kind, rates in told.items():
                            stream[kind] += rates
            for name in ours:
                steps = max(5, case.steps)
                told = jobs.request(name, **{**ask, "steps": steps}, phases=True)
                phases[name] = median_phases(told[0]["phases"])
                progress.advance(name)
    check_that_all_did_the_same(norms)
    result = {
        "command": common.command(),
        "ranks": ranks,
        "load_before": load,
        "parameters": case.parameters,
        "bytes": case.nbytes,
        **common.record(samples, plan.pairs(case, names)),
        "phases": phases,
    }
    if measures_memory:
        result["memory"] = report.memory_limit(case.nbytes, stream, result["summary"])
    return result


def median_phases(steps: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of each phase, on rank 0."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {
        name: statistics.median(step.get(name, 0.0) for step in steps) for name in names
    }


def check_that_all_did_the_same(norms: dict[str, float]) -> None:
    """Those that use MLX took the same steps, and so came to the same parameters."""
    same = {name: norm for name, norm in norms.items() if name not in plan.TORCH}
    middle = statistics.median(same.values())
    for name, norm in same.items():
        if abs(norm - middle) > 0.02 * middle:
            sys.exit(f"step: error: {name} computed something else: {norms}")


def measure_solo(out: Any, tensors: str, rounds: int) -> dict[str, Any]:
    script = plan.RANKS / "single_rank.py"
    with (
        running([mpi_job(WORLD_OF_ONE, 1, script, tensors, "float32")]) as jobs,
        Progress(out, 5, WORLD_OF_ONE) as progress,
    ):
        samples: dict[str, list[float]] = {}
        for _ in range(5):
            (told,) = jobs.request(WORLD_OF_ONE, rounds=max(1, rounds // 5))
            for name, seconds in told.items():
                samples.setdefault(name, []).extend(seconds)
            progress.advance(tensors)
    return common.record(samples, PAIRS)


def save(path: Path | None, result: dict[str, Any]) -> None:
    if path:
        common.write_json(path, __doc__.splitlines()[0], result)


if __name__ == "__main__":
    main()
