"""`mlxdist plan`: memory and step time on N hosts, predicted."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxdist.planner import memory_model as sizes
from mlxdist.planner import time_model as predict
from mlxdist.planner.memory_model import Mode, Model
from mlxdist.planner.time_model import LINKS, Link

from . import plan_table
from .options import positive, read_for, seconds

_DESCRIPTION = """\
Predict what a rank needs and how long a step takes on N hosts, and say how to keep the
optimizer's state. Time is a range: from all of the exchange hidden behind the backward
pass that can be, where an accelerator computes, to nothing of it, where the CPU does;
for your own hosts, measured, it is one figure.
"""

_EPILOG = """\
examples:
  mlxdist plan --parameters 7e9 --dtype bfloat16
  mlxdist plan --model model.safetensors --optimizer muon -n 8 --memory 64
  mlxdist plan --parameters 350e6 --step-time 0.8
  mlxdist doctor -H mac1,mac2 --json >links.json
  mlxdist plan --parameters 350e6 --step-time 0.8 --measured links.json

Links by name are line rates less headers; latencies, and what adding and copying take,
are assumed. --measured takes all of it of your own hosts. Activations are not counted.
"""

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_MOST = 4096  # hosts, as with `mlxdist run`


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="predict memory and step time on N hosts",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--parameters", type=_count, metavar="P", help="how many, such as 7e9"
    )
    what.add_argument(
        "--model",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="safetensors files; only their headers are read",
    )
    parser.add_argument(
        "--optimizer",
        choices=sizes.STATE_COPIES,
        default="adamw",
        help="whose state is kept (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of --parameters, their gradients and state (default: float32); a model "
        "file has its own",
    )
    parser.add_argument(
        "-n",
        type=positive,
        action="append",
        metavar="N",
        help=f"hosts; may be repeated (default: {', '.join(map(str, _RANKS))})",
    )
    _add_time_options(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_run)


def _add_time_options(parser: Any) -> None:
    parser.add_argument(
        "--step-time",
        type=seconds,
        metavar="SECONDS",
        help="a step of one rank by itself, on its share of the batch (default: 0, the "
        "network's part alone)",
    )
    parser.add_argument(
        "--update-time",
        type=seconds,
        metavar="SECONDS",
        help="of that, the optimizer's update, which sharing divides by N",
    )
    parser.add_argument(
        "--link",
        type=_link,
        action="append",
        metavar="LINK",
        help=f"between hosts: {', '.join(LINKS)}, or a rate such as 2.5gbit; may be "
        "repeated (default: all four)",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="what `mlxdist doctor -H ... --json` printed: your own links",
    )
    parser.add_argument(
        "--memory",
        type=_gigabytes,
        metavar="GB",
        help="what a rank has, less activations",
    )


def _run(parsed: argparse.Namespace) -> int:
    from mlxdist.layout.buckets import DEFAULT_BUCKET_SIZE

    if parsed.model:
        if parsed.dtype:
            raise ValueError("--dtype is for --parameters: a model file has its own")
        _check_files(parsed.model)
        model = sizes.model_of_files(
            parsed.model, parsed.optimizer, bucket_size=DEFAULT_BUCKET_SIZE
        )
    else:
        model = sizes.model_of_size(
            parsed.parameters,
            parsed.dtype or "float32",
            parsed.optimizer,
            bucket_size=DEFAULT_BUCKET_SIZE,
        )
    if (parsed.update_time or 0.0) > (parsed.step_time or 0.0):
        raise ValueError("--update-time is a part of --step-time, and not above it")
    if max(parsed.n or [1]) > _MOST:
        raise ValueError(f"-n {max(parsed.n)}: wanted at most {_MOST}")
    links = _links(parsed)
    rows = [_row(model, ranks, links, parsed) for ranks in parsed.n or _RANKS]
    if parsed.json:
        print(json.dumps(rows, indent=1))
    else:
        plan_table.show(model, rows, links, parsed.step_time)
    return 0


def _check_files(paths: Sequence[Path]) -> None:
    """Raises ValueError where one can't be opened."""
    for path in paths:
        with read_for("--model", "safetensors files"):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # a pipe would wait


def _links(parsed: argparse.Namespace) -> list[Link]:
    """Those asked for; the user's own, where there is nothing else, or all of them."""
    asked = list({link.name: link for link in parsed.link or ()}.values())
    if parsed.measured is None:
        return asked or list(LINKS.values())
    with read_for("--measured", "what `mlxdist doctor -H ... --json` printed"):
        text = parsed.measured.read_bytes()
    try:
        own = predict.measured_link(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--measured {parsed.measured}: {error}") from None
    return [own, *asked]


def _row(
    model: Model, ranks: int, links: Sequence[Link], parsed: argparse.Namespace
) -> dict[str, Any]:
    choice = predict.choice(model, ranks, parsed.memory)
    needed = {one: sizes.memory(model, ranks, one) for one in model.modes}
    times = {one: _times(model, ranks, one, links, parsed) for one in model.modes}
    return {
        "ranks": ranks,
        **choice._asdict(),
        "memory": {
            one: {**asdict(found), "total": found.total}
            for one, found in needed.items()
        },
        "seconds": times,
    }


def _times(
    model: Model,
    ranks: int,
    mode: Mode,
    links: Sequence[Link],
    parsed: argparse.Namespace,
) -> dict[str, dict[str, float | None]]:
    """Of a step, over each link."""
    computing = {
        "local": parsed.step_time or 0.0,
        "update": parsed.update_time or 0.0,
    }
    found = {}
    for link in links:
        time = predict.step_time(model, ranks, mode, link, **computing)
        found[link.name] = {
            **asdict(time),
            "shortest": time.shortest,
            "longest": time.longest,
            "expected": time.expected,
        }
    return found


def _link(text: str) -> Link:
    name = text.lower()  # as in 10GbE, Wifi, 1Gbit
    if name in LINKS:
        return LINKS[name]
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(mbit|gbit)", name, re.ASCII)
    if not found or not float(found[1]):
        known = ", ".join(LINKS)
        raise argparse.ArgumentTypeError(
            f"found {text!r}, wanted one of {known}, or a rate such as 2.5gbit"
        )
    rate = float(found[1]) * {"mbit": 1e6, "gbit": 1e9}[found[2]]
    return predict.ethernet(name, rate)


def _count(text: str) -> int:
    try:
        found = float(text.replace("_", ""))
    except ValueError:
        found = math.nan
    if not 1 <= found <= 1e15:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number such as 7e9")
    return int(found)


def _gigabytes(text: str) -> float:
    return 1e9 * seconds(text)
