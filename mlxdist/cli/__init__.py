"""The command `mlxdist`: argument parsing and printed tables, a module per command."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from ..launcher import standard_streams
from ..launcher.visible_text import message_of
from ..version import __version__
from . import checkpoint, doctor, plan, report, run, test


class _Parser(argparse.ArgumentParser):
    """A parser whose errors escape control characters of the command line."""

    def error(self, message: str) -> NoReturn:
        super().error(message_of(message))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands that are installed."""
    parser = _Parser(
        prog="mlxdist",
        description="Train an MLX model on several ranks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mlxdist {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for command in _commands():
        command.add_parser(commands)
    return parser


def _commands() -> list[ModuleType]:
    """Return the modules of the commands, in the order of `mlxdist --help`.

    Each has an add_parser(commands), which sets the parser's default `run`: it takes
    the parsed arguments and returns the exit code.
    """
    modules = [run, doctor, test, plan]
    # Wheels have neither the benchmarks nor the modules that run them.
    if importlib.util.find_spec(".bench", __name__) is not None:
        modules.append(importlib.import_module(".bench", __name__))
    return [*modules, checkpoint, report]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 if it could not start."""
    standard_streams.open_all()
    try:
        try:
            parsed, unknown = make_parser().parse_known_args(arguments)
            if unknown:
                parsed.refuse(
                    f"there is no option {unknown[0]}; "
                    f"`mlxdist {parsed.command} --help` lists them"
                )
            return int(parsed.run(parsed))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as in `mlxdist plan ... | head`
        standard_streams.discard(1)
        return 1
    except KeyboardInterrupt:  # Ctrl-C
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        standard_streams.print_error(f"mlxdist: error: {_message(error)}")
        if isinstance(error, OSError):  # a full disk may be that of standard output
            standard_streams.discard(1)
        return 2


def _message(error: Exception) -> str:
    """Return the error's text; of an OSError the path and reason, not the errno."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    path = str(error.filename) if error.filename else ""
    return ": ".join(filter(None, (path, error.strerror)))
