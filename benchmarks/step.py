"""How long is a step from gradients ready to parameters ready, against alternatives?

    mlxdist bench step --json benchmarks/results/step.json

AdamW on 2 ranks, with one thread each. The contenders are mlxdist, also with optimizer
state in 8 bits, which is compared with float32 state; upstream, which is
`nn.average_gradients` and MLX's optimizer compiled, as installed and "tuned" with the
allocator setting of mlxdist; and PyTorch, where it is installed, with gloo and either
fused AdamW or ZeroRedundancyOptimizer. 450 tensors of 4000, as LoRA has, are measured
with averaging and update inside one `mx.compile` as well, "compiled". Each is a
separate job, and their samples are interleaved. A sample is the time of the slowest
rank, from gradients evaluated to parameters and state evaluated.

With 50M and 200M, the memory bandwidth is measured in the same launch, by STREAM's copy
and add on all ranks at once, and compared with the bytes that an ideal sharded step
moves. For G bytes of float32 gradients on 2 ranks, each rank
    reads the other rank's half of its gradients, G/2, writes it to shared memory, G/2,
    reads what it receives there, G/2, and its own half, G/2;
    reads parameters and both moments of its half, 3/2 G, and writes them, 3/2 G;
    writes its new parameters to shared memory, G/2, reads what it receives there, G/2,
    and writes that to the parameters, G/2:
6.5 G in all. If shared memory stays in a shared cache, 4.5 G are left.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import common
from common import step_cases, step_report
from common.jobs import RunningJobs, mpi_job, running
from common.step_cases import MLXDIST, STREAM, TORCH, Case, Launch
from ranks.single_rank import PAIRS
from rich.console import Console

WORLD_OF_ONE = "world of one"
WORLD_OF_ONE_ROUNDS = {"1M": 200, "10M": 60, "50M": 20, "450x4000": 60}
REQUESTS = 5  # in which the rounds of a world of one are divided, to show progress


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    result: common.Result = {"cases": {}, WORLD_OF_ONE: {}}
    if args.only:
        result |= step_report.earlier_cases(args.json)
    measure_cases(console, args, result)
    if not args.only or WORLD_OF_ONE in args.only:
        for tensors in list(WORLD_OF_ONE_ROUNDS)[: 1 if args.quick else None]:
            rounds = 10 if args.quick else WORLD_OF_ONE_ROUNDS[tensors]
            measured = measure_world_of_one(console, tensors, rounds)
            result[WORLD_OF_ONE][tensors] = measured
            step_report.print_world_of_one(console, tensors, measured)
            common.write_json(args.json, __doc__, result)
    if args.json:
        step_report.draw(args.json, result)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "-n", type=common.positive, default=2, help="how many ranks (default: 2)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="cases whose names contain one of these, such as 50M, bfloat16, "
        f"'10M float32', 2000x1000 or '{WORLD_OF_ONE}'; other cases in FILE stay",
    )
    parser.add_argument(
        "--contenders", nargs="+", default=[], metavar="NAME", help="only some"
    )
    parser.add_argument(
        "--rate",
        type=common.rate,
        metavar="RATE",
        help="of the links between virtual hosts with one rank each, such as 1gbit; "
        "otherwise all ranks are on this machine",
    )
    common.add_rounds(parser, "--turns")
    args = parser.parse_args()
    try:
        args.contenders = step_cases.contenders(args.contenders)
    except ValueError as error:
        parser.error(str(error))
    if args.rate and not {*args.contenders}.isdisjoint(TORCH):
        parser.error("PyTorch runs on this machine only: name other --contenders")
    args.cases = step_cases.cases(args.only, quick=args.quick)
    if not args.cases and WORLD_OF_ONE not in args.only:
        parser.error(f"no case has any of {args.only} in its name")
    return args


def measure_cases(
    console: Console, args: argparse.Namespace, result: common.Result
) -> None:
    available = common.available_memory() * 9 // 10
    for case in args.cases:
        case = case._replace(rounds=args.rounds or case.rounds)
        launches = step_cases.launches(case, args.contenders, args.n, available)
        for number, launch in enumerate(launches, 1):
            name = case.name if number == 1 else f"{case.name}, launch {number}"
            measured = measure(console, case, launch, args.n, args.rate)
            result["cases"][name] = measured
            step_report.print_case(console, name, measured)
            common.write_json(args.json, __doc__, result)


def measure(
    console: Console, case: Case, launch: Launch, ranks: int, rate: str | None
) -> common.Result:
    """Return the samples of a launch's contenders, their phases and the bandwidth.

    Args:
        rate: of the links between virtual hosts; None: all ranks on this machine.
    """
    load = common.other_load()
    with_stream = case.nbytes > 100e6 and case.dtype == "float32" and rate is None
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="mlxdist-bench-")
        folder = Path(stack.enter_context(temporary))
        cluster = None
        if rate is not None:
            from common.cluster_jobs import VirtualCluster

            cluster = stack.enter_context(VirtualCluster(ranks, rate=rate))
        names = [*launch.names, STREAM] if with_stream else launch.names
        jobs = stack.enter_context(
            running([step_cases.job(n, case, ranks, folder, cluster) for n in names])
        )
        launched = LaunchedCase(case, launch, jobs, with_stream=with_stream)
        launched.take_samples(console)
        phases = launched.phases()
    result = {
        "command": common.command(),
        "ranks": ranks,
        "rate": rate,
        "load_before": load,
        "parameters": case.parameters,
        "bytes": case.nbytes,
        **common.record(launched.samples, step_cases.pairs(case, launch.names)),
        "phases": phases,
    }
    if with_stream:
        result["memory"] = step_report.memory_limit(
            case.nbytes, launched.stream, result["summary"]
        )
    return result


class LaunchedCase:
    """The running contenders of a case, and the samples taken of them."""

    def __init__(
        self, case: Case, launch: Launch, jobs: RunningJobs, *, with_stream: bool
    ):
        self.samples: dict[str, list[float]] = {name: [] for name in launch.names}
        self.stream: dict[str, list[float]] = {"copy": [], "add": []}
        self._case, self._names, self._jobs = case, launch.names, jobs
        self._with_stream = with_stream
        self._norms: dict[str, float] = {}
        # After a trim, memory is allocated again in the first steps.
        self._settings = {"warmup": 3 if launch.trim else 1, "trim": launch.trim}

    def take_samples(self, console: Console) -> None:
        total = self._case.rounds * len(self._names)
        with common.show_progress(console, total, self._case.name) as progress:
            for number in range(self._case.rounds):
                for name in common.round_order(self._names, number):
                    self._sample(name)
                    progress.advance(name)
                if self._with_stream:
                    self._sample_stream()
        check_equal_results(self._norms)

    def phases(self) -> dict[str, dict[str, float]]:
        """Return the median seconds of each phase of mlxdist's steps, on rank 0."""
        phases = {}
        for name in self._names:
            if name in MLXDIST:
                steps = max(5, self._case.steps)
                replies = self._request(name, steps=steps, phases=True)
                phases[name] = median_phases(replies[0]["phases"])
        return phases

    def _sample(self, name: str) -> None:
        replies = self._request(name, steps=self._case.steps, phases=False)
        seconds = (reply["seconds"] for reply in replies)
        self.samples[name] += map(max, zip(*seconds, strict=True))
        if name not in TORCH:
            self._norms[name] = replies[0]["norm"]

    def _sample_stream(self) -> None:
        for reply in self._jobs.request(STREAM, steps=1):
            for kind, rates in reply.items():
                self.stream[kind] += rates

    def _request(self, name: str, **request: Any) -> list[dict[str, Any]]:
        return self._jobs.request(name, **self._settings, **request)


def median_phases(steps: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for step in steps for name in step)
    return {
        name: statistics.median(step.get(name, 0.0) for step in steps) for name in names
    }


def check_equal_results(norms: dict[str, float]) -> None:
    """Exit with an error where contenders that use MLX have different parameters."""
    if not norms:
        return
    median = statistics.median(norms.values())
    for name, norm in norms.items():
        if abs(norm - median) > 0.02 * median:
            sys.exit(f"step: error: {name} has other parameters, by norm: {norms}")


def measure_world_of_one(console: Console, tensors: str, rounds: int) -> common.Result:
    script = common.RANK_PROGRAMS / "single_rank.py"
    job = mpi_job(WORLD_OF_ONE, 1, script, tensors, "float32")
    samples: dict[str, list[float]] = {}
    with (
        running([job]) as jobs,
        common.show_progress(console, REQUESTS, WORLD_OF_ONE) as progress,
    ):
        for _ in range(REQUESTS):
            (reply,) = jobs.request(WORLD_OF_ONE, rounds=max(1, rounds // REQUESTS))
            for name, seconds in reply.items():
                samples.setdefault(name, []).extend(seconds)
            progress.advance(tensors)
    return common.record(samples, PAIRS)


if __name__ == "__main__":
    main()
