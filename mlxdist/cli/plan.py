"""`mlxdist plan`: predict memory and step time on N hosts."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .. import planner
from ..layout import DEFAULT_BUCKET_SIZE
from ..planner import LINKS, STATE_COPIES, Link, Model
from . import plan_report, plan_table
from .options import Commands, add_command, opening, positive, seconds

_DESCRIPTION = """\
Predict the memory of a rank and the time of a step on N hosts, and recommend how to
shard the optimizer's state. Time is a range: the shortest is for hosts that compute on
an accelerator, so that communication overlaps the backward pass; the longest is for
hosts that compute on the CPU, without overlap. For your own hosts, measured, it is one
figure.
"""

_EPILOG = """\
examples:
  mlxdist plan --parameters 7e9 --dtype bfloat16
  mlxdist plan --model model.safetensors --optimizer muon -n 8 --memory 64
  mlxdist plan --parameters 350e6 --step-time 0.8
  mlxdist doctor -H mac1,mac2 --json >links.json
  mlxdist plan --parameters 350e6 --step-time 0.8 --measured links.json

A named link has its line rate less headers. Its latency, and the CPU time to add and
copy the data, are assumptions; --measured replaces them by figures of your own hosts.
Activations are not counted.
"""

_DEFAULT_HOSTS = (1, 2, 4, 8, 16, 32, 64)
_MAX_HOSTS = 4096  # hosts, as with `mlxdist run`


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        run=_run,
        usage="mlxdist plan (--parameters P | --model FILE ...) [OPTION ...]",
        help="predict memory and step time on N hosts",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--parameters", type=_count, metavar="P", help="their number, such as 7e9"
    )
    model.add_argument(
        "--model",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="safetensors files; only their headers are read",
    )
    parser.add_argument(
        "--optimizer",
        choices=STATE_COPIES,
        default="adamw",
        help="the optimizer, which sets the size of the state (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of --parameters, their gradients and state (default: float32); a "
        "model file has its own",
    )
    parser.add_argument(
        "-n",
        type=positive,
        action="append",
        metavar="N",
        help="number of hosts; may be repeated (default: "
        f"{', '.join(map(str, _DEFAULT_HOSTS))})",
    )
    _add_time_options(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _add_time_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step-time",
        type=_duration,
        metavar="SECONDS",
        help="time of a step on one rank alone, with its share of the batch (default: "
        "0, which predicts only communication)",
    )
    parser.add_argument(
        "--update-time",
        type=_duration,
        metavar="SECONDS",
        help="the part of it that the optimizer's update takes, which sharding divides "
        "by N",
    )
    parser.add_argument(
        "--link",
        type=_link,
        action="append",
        metavar="LINK",
        help=f"link between hosts: {', '.join(LINKS)}, or a rate such as 2.5gbit; may "
        "be repeated (default: all four)",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="output of `mlxdist doctor -H ... --json`, with your own links",
    )
    parser.add_argument(
        "--memory",
        type=_gigabytes,
        metavar="GB",
        help="memory available to each rank, less activations",
    )


def _run(parsed: argparse.Namespace) -> int:
    model = _model(parsed)
    local, update = parsed.step_time or 0.0, parsed.update_time or 0.0
    if update > local:
        raise ValueError(
            f"--update-time {update:g} is a part of --step-time, and that is {local:g}"
        )
    if max(parsed.n or [1]) > _MAX_HOSTS:
        raise ValueError(f"-n {max(parsed.n)}: wanted at most {_MAX_HOSTS}")
    links = _links(parsed)
    predictions = [
        planner.predict(
            model, ranks, links, local=local, update=update, available=parsed.memory
        )
        for ranks in parsed.n or _DEFAULT_HOSTS
    ]
    if parsed.json:
        print(json.dumps([plan_report.to_json(each) for each in predictions], indent=1))
    else:
        plan_table.show(model, predictions, links, parsed.step_time or None)
    return 0


def _model(parsed: argparse.Namespace) -> Model:
    """Return the model that --model or --parameters describes."""
    if not parsed.model:
        return planner.model_of_size(
            parsed.parameters,
            parsed.dtype or "float32",
            parsed.optimizer,
            bucket_size=DEFAULT_BUCKET_SIZE,
        )
    if parsed.dtype:
        raise ValueError("--dtype is for --parameters: a model file has its own")
    for path in parsed.model:
        with opening("--model", "safetensors files"):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # a FIFO would block
    return planner.model_of_files(
        parsed.model, parsed.optimizer, bucket_size=DEFAULT_BUCKET_SIZE
    )


def _links(parsed: argparse.Namespace) -> Sequence[Link]:
    """Return the links of --measured and --link; the known ones without either."""
    named = list({link.name: link for link in parsed.link or ()}.values())
    if parsed.measured is None:
        return named or list(LINKS.values())
    with opening("--measured", "what `mlxdist doctor -H ... --json` printed"):
        text = parsed.measured.read_bytes()
    try:
        measured = planner.measured_link(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--measured {parsed.measured}: {error}") from None
    return [measured, *named]


def _link(text: str) -> Link:
    """Parse the name of a link, or a rate such as 2.5gbit."""
    name = text.lower()  # people write 10GbE, Wifi, 1Gbit
    if name in LINKS:
        return LINKS[name]
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(mbit|gbit)", name, re.ASCII)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, wanted one of {', '.join(LINKS)}, or a rate such as "
            "2.5gbit"
        )
    rate = float(match[1]) * {"mbit": 1e6, "gbit": 1e9}[match[2]]
    return planner.ethernet(name, rate)


def _count(text: str) -> int:
    """Parse a number of parameters, such as 7e9."""
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        number = math.nan
    if not 1 <= number <= 1e15:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, wanted a number from 1 to 1e15, such as 7e9"
        )
    return int(number)


def _duration(text: str) -> float:
    """Parse a number of seconds, which may be 0."""
    try:
        if float(text) == 0:
            return 0.0
    except ValueError:
        pass
    return seconds(text)


def _gigabytes(text: str) -> float:
    """Parse a number of gigabytes, and return bytes."""
    return 1e9 * seconds(text)
