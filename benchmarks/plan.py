"""Does `mlxdist plan` predict the step time that hosts on a wire then have?

    mlxdist bench plan --json benchmarks/results/plan.json

Virtual hosts (launch/virtual_cluster) of one rank each train a transformer of 7.9
million parameters (32 MB) with AdamW, on a few rows and on many. The command is given
what its user has before the job runs: the model's file, a step and an update of one
rank by itself, and the links as `mlxdist doctor --json` measures them. For wires of
1 Gbit/s its figure from the name alone, `--link 1gbe`, is told as well.

The figure is predicted / measured, the median over turns; for the state as `plan` says
to keep it (sharded), and replicated. For measured links the prediction is what `plan`
expects; for a name it is the longest, since hosts compute on CPUs, and sending takes
the cores that compute. A rank by itself is timed while all others are too, since all
hosts share this machine's cores. The machine's own speed changes from one second to the
next, so that steps by itself, sharded and replicated follow one another one by one;
doctor comes once in each turn. Needs root on Linux, and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
from common import plots
from common.cluster_jobs import VirtualCluster, mpi_on_hosts
from common.jobs import RunningJobs, running
from common.progress import Progress
from ranks.overlap_rank import make_model

SCRIPT = common.BENCHMARKS / "ranks" / "overlap_rank.py"
COMMAND = (sys.executable, "-m", "mlxdist.cli")
# What is timed, and by which of the ranks' names.
PARTS = (
    ("alone", "step"),
    ("alone", "wire"),  # the update, where nothing travels
    ("sharded", "step"),
    ("replicated", "step"),
)
MODES = {"sharded": "elements", "replicated": "replicated"}
NAMED = {"1gbit": "1gbe", "10gbit": "10gbe"}
ROWS = (4, 24)
Turn = dict[tuple[str, ...], list[float]]
Prediction = dict[str, dict[str, float]]
ROUNDS = 4  # samples of each part in one turn


def main() -> None:
    args = parse_arguments()
    out = common.console()
    result: dict[str, Any] = {"cases": {}}
    for rate, hosts in itertools.product(args.rates, args.hosts):
        for name, case in measure(out, hosts, rate, args).items():
            result["cases"][name] = case
            show(out, name, case)
        if args.json:
            common.write_json(args.json, __doc__.splitlines()[0], result)
            with contextlib.suppress(ImportError):  # no matplotlib: no picture
                draw(args.json, result["cases"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hosts", nargs="+", type=common.several, default=[2, 4], metavar="N"
    )
    parser.add_argument(
        "--rates", nargs="+", default=list(NAMED), choices=NAMED, metavar="RATE"
    )
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="R")
    parser.add_argument(
        "--turns", type=common.positive, help="of each contender in each case"
    )
    common.add_options(parser)
    args = parser.parse_args()
    args.turns = args.turns or (1 if args.quick else 5)
    return args


def measure(
    out: Any, hosts: int, rate: str, args: argparse.Namespace
) -> dict[str, Any]:
    """One cluster: its links, and the cases of few and many rows, in turns."""
    turns_of: dict[int, list[Turn]] = {rows: [] for rows in args.rows}
    links = []
    with VirtualCluster(hosts, rate=rate) as cluster:
        player = mpi_on_hosts(cluster, "ours", SCRIPT, "ours")
        total = args.turns * (len(args.rows) + 1)
        title = f"{hosts} hosts, {rate}"
        with running([player]) as jobs, Progress(out, total, title) as progress:
            model = cluster.folder / "model.safetensors"
            make_model().save_weights(str(model))
            for number in range(args.turns):
                links.append(doctor(cluster))
                progress.advance("links")
                for rows in common.order_of(args.rows, number):
                    turns_of[rows].append(ask(jobs, rows))
                    progress.advance(f"{rows} rows")
        options = ["-n", str(hosts), "--link", NAMED[rate], "--model", str(model)]
        options += ["--measured", str(cluster.folder / "links.json")]
        told = []
        for number, found in enumerate(links):
            (cluster.folder / "links.json").write_text(json.dumps(found))
            told.append(
                [predicted(turns_of[rows][number], options) for rows in args.rows]
            )
        return {
            f"{hosts} hosts, {rate}, {rows} rows": {
                **case_of(turns_of[rows], [one[index] for one in told]),
                "links": [one["links"] for one in links],
            }
            for index, rows in enumerate(args.rows)
        }


def predicted(turn: Turn, options: list[str]) -> Prediction:
    """Seconds of a step, for each way to keep the state and each link."""
    times = {part: statistics.median(taken) for part, taken in turn.items()}
    computing = ["--step-time", str(times["alone", "step"])]
    computing += ["--update-time", str(times["alone", "wire"])]
    command = [*COMMAND, "plan", *options, *computing, "--json"]
    (row,) = json.loads(output_of(command))
    return {
        who: {
            link: one["expected"] or one["longest"]
            for link, one in row["seconds"][mode].items()
        }
        for who, mode in MODES.items()
    }


def case_of(turns: list[Turn], told: list[Prediction]) -> dict[str, Any]:
    """What was measured beside what `plan` says of it."""
    samples = {" ".join(p): [s for turn in turns for s in turn[p]] for p in PARTS}
    ratios: dict[str, dict[str, list[float]]] = {
        who: {
            link: [
                one[who][link] / statistics.median(turn[who, "step"])
                for one, turn in zip(told, turns, strict=True)
            ]
            for link in told[0][who]
        }
        for who in MODES
    }
    medians = {
        who: {link: statistics.median(taken) for link, taken in every.items()}
        for who, every in ratios.items()
    }
    return {
        **common.record(samples),
        "predicted": told,
        "predicted_by_measured": medians,
        "predicted_by_measured_in_each_turn": ratios,
    }


def ask(jobs: RunningJobs, rows: int) -> Turn:
    """Samples of each part, of the slowest rank, in seconds."""
    told = jobs.request("ours", parts=PARTS, rows=rows, rounds=ROUNDS)
    every = zip(*(reply["seconds"] for reply in told), strict=True)
    return {
        part: list(map(max, zip(*ranks, strict=True)))
        for part, ranks in zip(PARTS, every, strict=True)
    }


def doctor(cluster: VirtualCluster) -> dict[str, Any]:
    """What `mlxdist doctor --json` finds of the hosts."""
    names = ",".join(host.name for host in cluster.hosts)
    command = cluster.command([*COMMAND, "doctor", "-H", names, "--json"])
    return dict(json.loads(output_of(command)))


def output_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def show(out: Any, name: str, case: dict[str, Any]) -> None:
    rows = []
    for who, ratios in case["predicted_by_measured"].items():
        for link, ratio in ratios.items():
            median = case["summary"][f"{who} step"]["median"]
            expected = statistics.median(t[who][link] for t in case["predicted"])
            figures = (f"{1e3 * median:.0f}", f"{1e3 * expected:.0f}", f"{ratio:.3f}")
            rows.append([f"{who}, link {link}", *figures])
    columns = ["state", "measured ms", "predicted ms", "predicted / measured"]
    common.print_table(out, name, columns, rows)
    out.print()


def draw(path: Path, cases: dict[str, Any]) -> None:
    """Each case's predictions as parts of what was measured: turns, and medians."""
    title = "mlxdist plan: predicted / measured step time"
    looks = {
        ("sharded", True): ("o", plots.OURS, "sharded, links measured by doctor"),
        ("replicated", True): ("s", plots.OURS_TOO, "replicated, links measured"),
        ("sharded", False): ("x", plots.THEIRS, "sharded, link by its name"),
    }
    with plots.picture(path, title, size=(10, 4.5), grid="y") as axes:
        axes.axhspan(0.85, 1.15, color="#eef3f8", label="within 15%")
        axes.axhline(1, color=plots.LINE, linewidth=0.8)
        for number, case in enumerate(cases.values()):
            for place, ((who, measured), look) in enumerate(looks.items()):
                marker, color, label = look
                medians = case["predicted_by_measured"][who]
                (link,) = [name for name in medians if (name == "measured") == measured]
                turns = case["predicted_by_measured_in_each_turn"][who][link]
                x = number + 0.2 * (place - 1)
                axes.plot([x] * len(turns), turns, ".", color=color, alpha=0.35)
                label = label if number == 0 else None
                axes.plot([x], [medians[link]], marker, color=color, label=label)
        names = [name.replace(", ", "\n") for name in cases]
        axes.set_xticks(range(len(cases)), names)
        axes.set_ylabel("predicted / measured; small: single turns")
        axes.legend(frameon=False, ncols=4, loc="upper center", fontsize=9)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.7), max(high, 1.3) + 0.1)


if __name__ == "__main__":
    main()
