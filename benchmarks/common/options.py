"""Command-line options that benchmarks share."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from types import TracebackType


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark: --json and --quick."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json",
        type=_new_file,
        metavar="FILE",
        help="write all samples and the environment to FILE; with a picture where the "
        "benchmark draws one",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller cases; rough"
    )
    sys.excepthook = _exit_quietly
    return parser


def add_rounds(
    parser: argparse.ArgumentParser, name: str = "--rounds", default: int | None = None
) -> None:
    """Add the number of rounds; each round takes samples of every contender."""
    parser.add_argument(
        name,
        dest="rounds",
        type=positive,
        default=default,
        metavar="N",
        help="rounds of each case, with samples of every contender in each",
    )


def add_hosts(parser: argparse.ArgumentParser, default: int | list[int]) -> None:
    """Add the number of virtual hosts, or several numbers for a case each."""
    parser.add_argument(
        "--hosts",
        nargs="+" if isinstance(default, list) else None,
        type=at_least_two,
        default=default,
        metavar="N",
        help="virtual hosts, with one rank each",
    )


def add_rates(parser: argparse.ArgumentParser, default: list[str]) -> None:
    """Add the line rates between virtual hosts; each is a case."""
    parser.add_argument(
        "--rates",
        nargs="+",
        type=rate,
        default=default,
        metavar="RATE",
        help="of the links between the hosts, such as 1gbit",
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder whose disk is measured."""
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="on the disk to measure"
    )


def positive(text: str) -> int:
    """Return a whole number of at least 1, for argparse."""
    return _whole_number(text, 1)


def at_least_two(text: str) -> int:
    """Return a whole number of at least 2, for argparse."""
    return _whole_number(text, 2)


def rate(text: str) -> str:
    """Return a line rate in the words of `tc`, for argparse."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[kmg]bit", text):
        raise argparse.ArgumentTypeError(f"found {text}, wanted such as 1gbit")
    return text


def _whole_number(text: str, minimum: int) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"found {text}, wanted at least {minimum}")
    return int(text)


def _new_file(text: str) -> Path:
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder for {text}")
    return Path(text)


def _exit_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print no traceback after Ctrl-C."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
