"""Does `mlxdist plan` predict the step time that hosts on a wire then have?

    mlxdist bench plan --json benchmarks/results/plan.json

Virtual hosts (launch/virtual_cluster) of one rank each train a transformer of 7.9
million parameters (32 MB) with AdamW, on a few rows and on many. The command is given
what its user has before the job runs: the model's file, a step and an update of one
rank by itself, and the links as `mlxdist doctor --json` measures them. For wires of
1 Gbit/s its figure from the name alone, `--link 1gbe`, is told as well.

The figure is predicted / measured, for the state as `plan` says to keep it (sharded),
and replicated. Hosts compute on CPUs, so that the prediction is the longest of `plan`:
sending takes the cores that compute. A rank by itself is timed while all others are
too, since all hosts share this machine's cores. Doctor, one rank, and the steps take
turns. Needs root on Linux, and iproute2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from typing import Any

import common
from common.progress import Progress
from common.turns import Turns
from parts.hosts import VirtualCluster, mpi_on_hosts
from parts.overlap_rank import make_model

SCRIPT = common.BENCHMARKS / "parts" / "overlap_rank.py"
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
ROUNDS = 2  # samples in one turn


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
    keys = [(rows, *part) for rows in args.rows for part in PARTS]
    samples: dict[tuple[int, str, str], list[float]] = {key: [] for key in keys}
    links = []
    with VirtualCluster(hosts, rate=rate) as cluster:
        player = mpi_on_hosts(cluster, "ours", SCRIPT, "ours")
        total = args.turns * (len(keys) + 1)
        title = f"{hosts} hosts, {rate}"
        with Turns([player]) as turns, Progress(out, total, title) as progress:
            model = cluster.folder / "model.safetensors"
            make_model().save_weights(str(model))
            for number in range(args.turns):
                links.append(doctor(cluster))
                progress.advance("links")
                for key in common.order_of(keys, number):
                    samples[key] += ask(turns, *key)
                    progress.advance(f"{key[1]} {key[2]}, {key[0]} rows")
        middle = sorted(links, key=together)[len(links) // 2]
        options = ["-n", str(hosts), "--link", NAMED[rate], "--model", str(model)]
        options += ["--measured", str(cluster.folder / "links.json")]
        (cluster.folder / "links.json").write_text(json.dumps(middle))
        return {
            f"{hosts} hosts, {rate}, {rows} rows": {
                **case_of({part: samples[(rows, *part)] for part in PARTS}, options),
                "links": [one["links"] for one in links],
            }
            for rows in args.rows
        }


def case_of(
    samples: dict[tuple[str, str], list[float]], options: list[str]
) -> dict[str, Any]:
    """What was measured beside what `plan` says of it."""
    case = common.record({" ".join(part): taken for part, taken in samples.items()})
    times = {part: statistics.median(taken) for part, taken in samples.items()}
    computing = ["--step-time", str(times["alone", "step"])]
    computing += ["--update-time", str(times["alone", "wire"])]
    command = [*COMMAND, "plan", *options, *computing, "--json"]
    (row,) = json.loads(output_of(command))
    predicted = {
        who: {link: one["longest"] for link, one in row["seconds"][mode].items()}
        for who, mode in MODES.items()
    }
    ratios = {
        who: {link: time / times[who, "step"] for link, time in every.items()}
        for who, every in predicted.items()
    }
    return {**case, "predicted": predicted, "predicted_by_measured": ratios}


def ask(turns: Turns, rows: int, who: str, what: str) -> list[float]:
    """Samples of the slowest rank, in seconds."""
    told = turns.ask("ours", who=who, what=what, rows=rows, rounds=ROUNDS)
    return list(map(max, zip(*(reply["seconds"] for reply in told), strict=True)))


def doctor(cluster: VirtualCluster) -> dict[str, Any]:
    """What `mlxdist doctor --json` finds of the hosts."""
    names = ",".join(host.name for host in cluster.hosts)
    command = cluster.command([*COMMAND, "doctor", "-H", names, "--json"])
    return dict(json.loads(output_of(command)))


def together(told: dict[str, Any]) -> float:
    return float(told["links"]["exchange"]["seconds"])


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
            expected = case["predicted"][who][link]
            figures = (f"{1e3 * median:.0f}", f"{1e3 * expected:.0f}", f"{ratio:.3f}")
            rows.append([f"{who}, link {link}", *figures])
    columns = ["state", "measured ms", "predicted ms", "predicted / measured"]
    common.print_table(out, name, columns, rows)
    out.print()


if __name__ == "__main__":
    main()
