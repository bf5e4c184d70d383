"""The link that `mlxdist doctor -H ... --json` measured between the user's hosts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from .time_model import Link

_WANTED = "wanted the output of `mlxdist doctor -H ... --json`"


def measured_link(report: object) -> Link:
    """Return the slowest link between two hosts in a parsed report.

    The exchange among all ranks takes longer than that link's bandwidth and latency
    account for. The rest is CPU time: ranks copy and add, and may share cores or a
    switch. The time that computing during the exchange saved is the overlap.

    Raises:
        ValueError: the report has no links between hosts, or an impossible number.
    """
    links = report.get("links") if isinstance(report, dict) else None
    pairs = links.get("pairs") if isinstance(links, dict) else None
    if not isinstance(links, dict) or not isinstance(pairs, list) or not pairs:
        raise ValueError(f"no measured links; {_WANTED}")
    hosts = links.get("hosts", [])
    if not isinstance(hosts, list) or len(set(map(str, hosts))) == 1:
        raise ValueError(f"all measured links are within one host; {_WANTED}")
    try:
        bandwidth = min(_number(pair, "bandwidth", 1.0, 1e15) for pair in pairs)
        latency = max(_number(pair, "latency", 0.0, 1e6) for pair in pairs)
        link = Link("measured", bandwidth, latency)
        return _with_exchange(link, links)
    except ValueError as error:
        raise ValueError(f"{error}; {_WANTED}") from None


def _with_exchange(link: Link, links: Mapping[str, object]) -> Link:
    """Return the link with CPU time and overlap, from the exchange among all ranks."""
    exchange = links.get("exchange")
    if exchange is None:
        raise ValueError("no exchange among all ranks was measured: run doctor again")
    ranks = int(_number(links, "ranks", 2, 2**20))
    buckets = int(_number(exchange, "buckets", 1, 2**20))
    nbytes = 2 * (ranks - 1) / ranks * _number(exchange, "bytes", 1, 1e15)
    names = ("seconds", "computing", "both")
    seconds, computing, both = (_number(exchange, name, 1e-9, 1e9) for name in names)
    transfer = link.exchange(nbytes, 2 * buckets * (ranks - 1), ranks).seconds
    overlappable = min(seconds, computing) * (1 - 1 / buckets)
    saved = seconds + computing - both
    overlap = min(1.0, max(0.0, saved / overlappable)) if overlappable else 0.0
    cpu_per_byte = max(0.0, (seconds - transfer) / nbytes)
    return replace(link, cpu_per_byte=cpu_per_byte, overlap=overlap)


def _number(fields: object, name: str, least: float, most: float) -> float:
    """Return a field of the report as a float.

    Raises:
        ValueError: the field is missing, no number, or out of range.
    """
    value = fields.get(name) if isinstance(fields, dict) else None
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = value
    if not least <= number <= most:  # nan compares false
        raise ValueError(f"its {name} is {str(value)[:40]}")
    return float(number)
