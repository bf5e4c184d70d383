"""The command `mlxdist`. Argument parsing only: each command's module has no logic."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mlxdist import __version__

from . import bench, checkpoint, doctor, plan, run, test

# One module for each command: add_parser(commands) makes its parser and sets `run`,
# which takes the parsed arguments and returns the exit code.
COMMANDS = (run, doctor, test, plan, bench, checkpoint)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlxdist",
        description="Train an MLX model on several ranks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mlxdist {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 2 where it can't even begin."""
    parsed = make_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except BrokenPipeError:  # `mlxdist plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"mlxdist: error: {_told(error)}", file=sys.stderr)
        return 2


def _told(error: Exception) -> str:
    """Without the number of a system's error, and with the file it is about."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return ": ".join(
        filter(None, (error.filename and str(error.filename), error.strerror))
    )
