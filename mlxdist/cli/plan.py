"""`mlxdist plan`: predict memory and step time on N hosts."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .. import planner
from ..layout import DEFAULT_BUCKET_SIZE
from ..layout.memory import STATE_COPIES, MemoryOptions
from ..planner import LINKS, Link, Model
from . import plan_chart, plan_report, plan_table, plan_values
from .options import Commands, add_command, opening, positive

_DESCRIPTION = """\
Predict the memory of a rank and the time of a step on N hosts, and name the cheapest
change that makes a model fit. Each figure is a sum whose terms are printed.

Time is a range: the shortest is for hosts that compute on an accelerator, so that
communication overlaps the backward pass; the longest is for hosts that compute on the
CPU, without overlap. For your own hosts, measured, it is one figure.
"""

_EPILOG = """\
examples:
  mlxdist plan --parameters 8B --dtype bfloat16 --master-dtype float32 --memory 64GB
  mlxdist plan --parameters 20M --frozen 8B --frozen-dtype 4bit --dtype bfloat16
  mlxdist plan --model model.safetensors --optimizer muon -n 8 --memory 64GB
  mlxdist plan --parameters 350M --link thunderbolt4 --step-time 0.8
  mlxdist plan --parameters 8B --dtype bfloat16 --memory 64GB --chart plan.svg
  mlxdist doctor -H mac1,mac2 --json >links.json
  mlxdist plan --parameters 350M --step-time 0.8 --measured links.json

A named link has its line rate less headers. Its latency, and the CPU time to add and
copy the data, are assumptions; --measured replaces them by figures of your own hosts.
Activations are not counted: optimizer.describe(loss_fn, model, *batch) measures them.
"""

_DEFAULT_HOSTS = (1, 2, 4, 8)
_MAX_HOSTS = 4096  # hosts, as with `mlxdist run`
# Of frozen parameters. MLX quantizes groups of 64 with a 16-bit scale and bias each.
_FROZEN_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "8bit": 1 + 4 / 64,
    "4bit": 0.5 + 4 / 64,
}


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
    _add_model(parser)
    _add_memory(parser)
    _add_time(parser)
    parser.add_argument(
        "-n",
        "--hosts",
        dest="hosts",
        type=positive,
        action="append",
        metavar="N",
        help="number of hosts, with a rank on each; may be repeated (default: "
        f"{', '.join(map(str, _DEFAULT_HOSTS))})",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument(
        "--chart",
        type=plan_chart.target,
        metavar="FILE",
        help="draw it, too: FILE.png; or FILE.svg, and FILE_dark.svg for dark pages",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    model = group.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--parameters",
        type=plan_values.parameter_count,
        metavar="P",
        help="number of trained parameters, such as 7B, 350M or 7e9",
    )
    model.add_argument(
        "--model",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="safetensors files; only their headers are read",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of --parameters and their gradients (default: float32); a model "
        "file has its own",
    )
    group.add_argument(
        "--frozen",
        type=plan_values.parameter_count,
        metavar="P",
        default=0,
        help="number of parameters that are not trained, as those under LoRA",
    )
    group.add_argument(
        "--frozen-dtype",
        choices=_FROZEN_BYTES,
        help="dtype of --frozen (default: that of --dtype)",
    )


def _add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the optimizer and the memory")
    group.add_argument(
        "--optimizer",
        choices=STATE_COPIES,
        default="adamw",
        help="its class, which sets the size of the state (default: %(default)s)",
    )
    group.add_argument(
        "--memory",
        type=plan_values.memory_size,
        metavar="SIZE",
        help="memory of each rank for what is counted, such as 64GB or 64GiB",
    )
    group.add_argument(
        "--master-dtype",
        choices=("float32", "24bit"),
        help="masters of 16-bit parameters (default: none)",
    )
    group.add_argument(
        "--state-dtype",
        choices=("int8",),
        help="state in 8 bits in each choice (default: only where it is needed)",
    )
    group.add_argument(
        "--minimize",
        action="store_true",
        help="steps by optimizer.minimize in each choice",
    )
    group.add_argument(
        "--max-norm", action="store_true", help="clip gradients, as max_norm does"
    )
    group.add_argument(
        "--accumulate",
        type=positive,
        metavar="K",
        default=1,
        help="micro-batches of a step (default: 1)",
    )
    group.add_argument("--ema", action="store_true", help="keep EMA weights")


def _add_time(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("time")
    group.add_argument(
        "--step-time",
        type=plan_values.duration,
        metavar="SECONDS",
        help="time of a step on one rank alone, with its share of the batch (default: "
        "0, which predicts only communication)",
    )
    group.add_argument(
        "--update-time",
        type=plan_values.duration,
        metavar="SECONDS",
        help="the part of it that the optimizer's update takes, which sharding divides "
        "by N",
    )
    group.add_argument(
        "--link",
        type=plan_values.link,
        action="append",
        metavar="LINK",
        help=f"link between hosts: {', '.join(LINKS)}, or a rate such as 2.5gbit; may "
        "be repeated (default: all of them)",
    )
    group.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="output of `mlxdist doctor -H ... --json`, with your own links",
    )


def _run(parsed: argparse.Namespace) -> int:
    model, options = _model(parsed), _options(parsed)
    local, update = parsed.step_time or 0.0, parsed.update_time or 0.0
    if update > local:
        raise ValueError(
            f"--update-time {update:g} is a part of --step-time, and that is {local:g}"
        )
    if max(parsed.hosts or [1]) > _MAX_HOSTS:
        raise ValueError(f"--hosts {max(parsed.hosts)}: wanted at most {_MAX_HOSTS}")
    if options.state_dtype:
        model.require_known_state()
    links = _links(parsed)
    predictions = [
        planner.predict(
            model,
            ranks,
            links,
            options=options,
            local=local,
            update=update,
            available=parsed.memory,
        )
        for ranks in parsed.hosts or _DEFAULT_HOSTS
    ]
    drawn = []
    if parsed.chart is not None:  # before the page: there may be no matplotlib
        with opening("--chart", "a file in a folder that can be written"):
            drawn = plan_chart.draw(
                parsed.chart, model, predictions, links, local or None, parsed.memory
            )
    if parsed.json:
        rows = [plan_report.to_json(p, parsed.memory) for p in predictions]
        print(json.dumps(rows, indent=1))
    else:
        plan_table.show(model, predictions, links, local or None, parsed.memory)
        for path in drawn:
            print(f"Chart: {path}")
    return 0


def _options(parsed: argparse.Namespace) -> MemoryOptions:
    return MemoryOptions(
        minimize=parsed.minimize,
        needs_norm=parsed.max_norm,
        scales_gradients=parsed.max_norm,
        state_dtype=parsed.state_dtype,
        float32_state=("embed",),
        master_dtype=parsed.master_dtype,
        accumulate=parsed.accumulate,
        ema=parsed.ema,
    )


def _model(parsed: argparse.Namespace) -> Model:
    """Return the model that --model or --parameters describes."""
    dtype = parsed.dtype or "float32"
    width = _FROZEN_BYTES[parsed.frozen_dtype or dtype]
    frozen = round(parsed.frozen * width)
    if not parsed.model:
        return planner.model_of_size(
            parsed.parameters,
            dtype,
            parsed.optimizer,
            bucket_size=DEFAULT_BUCKET_SIZE,
            frozen=frozen,
        )
    if parsed.dtype:
        raise ValueError("--dtype is for --parameters: a model file has its own")
    for path in parsed.model:
        with opening("--model", "safetensors files"):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # a FIFO would block
    return planner.model_of_files(
        parsed.model, parsed.optimizer, bucket_size=DEFAULT_BUCKET_SIZE, frozen=frozen
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
