"""Does `mlxdist plan` predict the step time that hosts on a network have?

    mlxdist bench plan --json benchmarks/results/plan.json

Virtual hosts (tests/support/virtual_cluster) of one rank each train a transformer of
7.9 million parameters (32 MB) with AdamW, on few rows and on many. `plan` gets what a
user has before the job: the model's file, the times of a step and of an update of one
rank alone, and the links as `mlxdist doctor --json` measures them. The prediction from
the name of the link, such as `--link 1gbe`, is reported as well.

The result is predicted / measured, the median over rounds; for sharded state, as `plan`
recommends it, and for replicated state. For measured links it takes what `plan`
expects; for a link by name, the longest time, since hosts compute on CPUs, and sending
takes processor time from computing. A rank alone is timed while all other ranks compute
too, since the hosts share this machine's cores. The machine's speed changes from one
second to the next, so single steps alone, sharded and replicated are interleaved;
doctor runs once per round. Needs root on Linux, and iproute2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
from common import plots
from common.cluster_jobs import VirtualCluster, cluster_job
from common.jobs import RunningJobs, running
from ranks.overlap_rank import make_model
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "overlap_rank.py"
LEGEND = """\
Medians over the rounds, ms a step. predicted / measured: 1 is exact, below 1 promises
too much. link measured: with the links that doctor measured; else by their name."""
JOB = "mlxdist"
MLXDIST = (sys.executable, "-m", "mlxdist.cli")
PARTS = (  # contenders of overlap_rank.py, and what is timed of each
    ("alone", "step"),
    ("alone", "wire"),  # the update, without communication
    ("sharded", "step"),
    ("replicated", "step"),
)
STRATEGIES = {"sharded": "elements", "replicated": "replicated"}  # as `plan` calls them
LINKS = {"1gbit": "1gbe", "10gbit": "10gbe"}
SAMPLES = 4  # of each part in a round

Samples = dict[tuple[str, ...], list[float]]  # seconds of each part in one round
Prediction = dict[str, dict[str, float]]  # seconds of a step by strategy and link


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    result: common.Result = {"cases": {}}
    for rate, hosts in itertools.product(args.rates, args.hosts):
        for name, case in measure(console, hosts, rate, args).items():
            result["cases"][name] = case
            show(console, name, case)
        common.write_json(args.json, __doc__, result)
        common.draw_result(args.json, draw, result["cases"])


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    common.add_hosts(parser, [2, 4])
    parser.add_argument(
        "--rates", nargs="+", default=list(LINKS), choices=LINKS, metavar="RATE"
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[4, 24], metavar="R")
    common.add_rounds(parser, "--turns")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    return args


def measure(
    console: Console, hosts: int, rate: str, args: argparse.Namespace
) -> dict[str, common.Result]:
    """Return the cases of one cluster, one for each number of rows."""
    with VirtualCluster(hosts, rate=rate) as cluster:
        model = cluster.folder / "model.safetensors"
        make_model().save_weights(str(model))
        title = f"{hosts} hosts, {rate}"
        samples, links = take_samples(console, title, cluster, args)
        options = ["-n", str(hosts), "--link", LINKS[rate], "--model", str(model)]
        file = cluster.folder / "links.json"
        options += ["--measured", str(file)]
        predictions: dict[int, list[Prediction]] = {rows: [] for rows in args.rows}
        for number, measured in enumerate(links):
            file.write_text(json.dumps(measured))
            for rows in args.rows:
                predictions[rows].append(predict(samples[rows][number], options))
    return {
        f"{title}, {rows} rows": {
            **case_of(samples[rows], predictions[rows]),
            "links": [measured["links"] for measured in links],
        }
        for rows in args.rows
    }


def take_samples(
    console: Console, title: str, cluster: VirtualCluster, args: argparse.Namespace
) -> tuple[dict[int, list[Samples]], list[dict[str, Any]]]:
    """Return samples by number of rows and round, and doctor's report of each round."""
    samples: dict[int, list[Samples]] = {rows: [] for rows in args.rows}
    links = []
    total = args.rounds * (len(args.rows) + 1)
    with (
        running([cluster_job(cluster, JOB, SCRIPT)]) as jobs,
        common.show_progress(console, total, title) as progress,
    ):
        for number in range(args.rounds):
            links.append(doctor(cluster))
            progress.advance("links")
            for rows in common.round_order(args.rows, number):
                samples[rows].append(samples_of(jobs, rows))
                progress.advance(f"{rows} rows")
    return samples, links


def samples_of(jobs: RunningJobs, rows: int) -> Samples:
    """Return one round's samples of each part, of the slowest rank."""
    replies = jobs.request(JOB, parts=PARTS, rows=rows, samples=SAMPLES, repeats=1)
    seconds_of_ranks = zip(*(reply["seconds"] for reply in replies), strict=True)
    return {
        part: list(map(max, zip(*seconds, strict=True)))
        for part, seconds in zip(PARTS, seconds_of_ranks, strict=True)
    }


def predict(samples: Samples, options: list[str]) -> Prediction:
    """Return what `plan` predicts from a round's samples of a rank alone."""
    step, update = (statistics.median(samples["alone", p]) for p in ("step", "wire"))
    times = ["--step-time", str(step), "--update-time", str(update)]
    (row,) = json.loads(output_of([*MLXDIST, "plan", *options, *times, "--json"]))
    return {
        name: {
            link: seconds["expected"] or seconds["longest"]
            for link, seconds in row["seconds"][strategy].items()
        }
        for name, strategy in STRATEGIES.items()
    }


def case_of(rounds: list[Samples], predictions: list[Prediction]) -> common.Result:
    """Return a case's samples, predictions, and their ratios."""
    samples = {" ".join(part): [s for r in rounds for s in r[part]] for part in PARTS}
    ratios: dict[str, dict[str, list[float]]] = {
        name: {
            link: [
                prediction[name][link] / statistics.median(seconds[name, "step"])
                for prediction, seconds in zip(predictions, rounds, strict=True)
            ]
            for link in predictions[0][name]
        }
        for name in STRATEGIES
    }
    medians = {
        name: {link: statistics.median(values) for link, values in by_link.items()}
        for name, by_link in ratios.items()
    }
    return {
        **common.record(samples),
        "predicted": predictions,
        "predicted_by_measured": medians,
        "predicted_by_measured_in_each_turn": ratios,
    }


def doctor(cluster: VirtualCluster) -> dict[str, Any]:
    """Return the report of `mlxdist doctor --json` on the hosts."""
    names = ",".join(host.name for host in cluster.hosts)
    command = cluster.command([*MLXDIST, "doctor", "-H", names, "--json"])
    return dict(json.loads(output_of(command)))


def output_of(command: list[str]) -> str:
    """Return what a command prints.

    Raises:
        RuntimeError: it failed, with its output.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def show(console: Console, name: str, case: common.Result) -> None:
    rows = []
    for strategy, ratios in case["predicted_by_measured"].items():
        measured = case["summary"][f"{strategy} step"]["median"]
        for link, ratio in ratios.items():
            predicted = statistics.median(p[strategy][link] for p in case["predicted"])
            figures = f"{1e3 * measured:.0f}", f"{1e3 * predicted:.0f}", f"{ratio:.3f}"
            rows.append([f"{strategy}, link {link}", *figures])
    columns = ["state", "measured ms", "predicted ms", "predicted / measured"]
    common.print_table(console, name, columns, rows, LEGEND)
    ratios = [
        r for each in case["predicted_by_measured"].values() for r in each.values()
    ]
    furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    text = f"the prediction that is furthest off is {furthest:.2f} of what was measured"
    common.print_verdict(console, text)
    console.print()


# How each kind of prediction is drawn: its strategy, whether links were measured, its
# marker, color and label.
MARKS = (
    ("sharded", True, "o", plots.BLUE, "sharded, links measured by doctor"),
    ("replicated", True, "s", plots.LIGHT_BLUE, "replicated, links measured"),
    ("sharded", False, "x", plots.ORANGE, "sharded, link by its name"),
)


def draw(path: Path, cases: common.Result) -> None:
    """Draw each case's predictions relative to measurements: rounds, and medians."""
    title = "mlxdist plan: predicted / measured step time"
    with plots.figure(path, title, size=(10, 4.5), grid="y") as axes:
        axes.axhspan(0.85, 1.15, color="#eef3f8", label="within 15%")
        axes.axhline(1, color=plots.BLACK, linewidth=0.8)
        for number, case in enumerate(cases.values()):
            for offset, mark in enumerate(MARKS):
                x = number + 0.2 * (offset - 1)
                _draw_mark(axes, x, case, *mark, labeled=number == 0)
        names = [name.replace(", ", "\n") for name in cases]
        axes.set_xticks(range(len(cases)), names)
        axes.set_ylabel("predicted / measured; small: single rounds")
        axes.legend(frameon=False, ncols=4, loc="upper center", fontsize=9)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.7), max(high, 1.3) + 0.1)


def _draw_mark(
    axes: Any,
    x: float,
    case: common.Result,
    strategy: str,
    measured: bool,
    marker: str,
    color: str,
    label: str,
    *,
    labeled: bool,
) -> None:
    medians = case["predicted_by_measured"][strategy]
    (link,) = [name for name in medians if (name == "measured") == measured]
    rounds = case["predicted_by_measured_in_each_turn"][strategy][link]
    axes.plot([x] * len(rounds), rounds, ".", color=color, alpha=0.35)
    legend = label if labeled else None
    axes.plot([x], [medians[link]], marker, color=color, label=legend)


if __name__ == "__main__":
    main()
