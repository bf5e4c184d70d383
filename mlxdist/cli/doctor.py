"""`mlxdist doctor`: what went wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what went wrong with a job that died",
        description="Read what the ranks of a job wrote when it died.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--postmortem",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the folder that the job named, mlxdist-postmortem/...",
    )
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from mlxdist import postmortem  # MLX comes with it: 0.2 s

    print(postmortem.report(parsed.postmortem))
    return 0
