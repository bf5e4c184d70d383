"""Types of the options of `mlxdist plan`: 7B, 64GB, thunderbolt5."""

from __future__ import annotations

import argparse
import math
import re

from .. import planner
from ..planner import LINKS, Link
from .options import seconds

_THOUSANDS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_BYTES = {"": 1e9, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_BYTES |= {"mib": 2**20, "gib": 2**30, "tib": 2**40}


def parameter_count(text: str) -> int:
    """Parse a number of parameters, such as 7B, 350M, 1.5b or 7e9."""
    number, unit = _number_and_unit(text)
    number *= _THOUSANDS.get(unit, math.nan)
    if not 1 <= number <= 1e15:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, wanted a number from 1 to 1e15, such as 7B, 350M or 7e9"
        )
    return round(number)


def memory_size(text: str) -> float:
    """Parse an amount of memory, such as 64GB, 64GiB or 64, and return bytes."""
    number, unit = _number_and_unit(text)
    number *= _BYTES.get(unit, math.nan)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, wanted an amount such as 64GB, 64GiB, or 64 for GB"
        )
    return number


def link(text: str) -> Link:
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


def duration(text: str) -> float:
    """Parse a number of seconds, which may be 0."""
    try:
        if float(text) == 0:
            return 0.0
    except ValueError:
        pass
    return seconds(text)


def _number_and_unit(text: str) -> tuple[float, str]:
    """Split `1.5 GB` into 1.5 and "gb"; the number is nan if there is none."""
    pattern = r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]{1,3})?) ?([a-z]*)"
    match = re.fullmatch(pattern, text.strip().lower(), re.ASCII)
    if not match:
        return math.nan, ""
    return float(match[1].replace("_", "")), match[2]
