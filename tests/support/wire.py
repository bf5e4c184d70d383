"""The link of a virtual host: its rate, and what goes wrong on it."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Sequence

from tests.support import netns

_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
# The queue of a link is so long that hardly any packet is dropped, as on a good switch.
# The burst has room for the largest packet that the kernel passes on in one piece.
_QUEUE, _BURST = "4mb", "128kb"


class Wire:
    """A link between a host and the switch, shaped at both ends.

    Args:
        ends: namespace and name of the network device at each end.
        rate: in either direction, in tc's notation.
    """

    def __init__(self, ends: Sequence[tuple[netns.Namespace, str]], rate: str):
        self._ends, self._rate = ends, rate

    def restore(self) -> None:
        """Make the link as it was at first."""
        self.set_rate(self._rate)

    def set_rate(self, rate: str) -> None:
        """Change the rate; no packet is lost."""
        self._shape("tbf", "rate", rate, "burst", _BURST, "limit", _QUEUE)

    def shorten_queue(self, rate: str, nbytes: int) -> None:
        """Give the link a rate and a queue so short that packets are dropped."""
        self._shape("tbf", "rate", rate, "burst", "16kb", "limit", str(nbytes))

    def lose(self, percent: float, *, delay: float) -> None:
        """Drop packets at random and delay the others by seconds; needs `has_netem`."""
        latency = ("delay", f"{delay * 1000:g}ms", "loss", f"{percent:g}%")
        self._shape("netem", *latency, "rate", self._rate)

    def _shape(self, *qdisc: str) -> None:
        for space, device in self._ends:
            space.run("tc", "qdisc", "replace", "dev", device, "root", *qdisc)


@functools.cache
def has_netem() -> bool:
    """Return whether this kernel can delay packets and lose them at random."""
    if netns.problem() is not None:
        return False
    add = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    tried = subprocess.run(["unshare", "--net", *add], capture_output=True)
    return tried.returncode == 0


def bits_per_second(rate: str) -> float:
    """Return the bits per second of a rate in tc's notation, such as "100mbit".

    Raises:
        ValueError: it is not in that notation, or is zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", rate)
    if not match or not float(match[1]):
        raise ValueError(f"the rate is {rate!r}; wanted such as 1gbit or 100mbit")
    return float(match[1]) * _UNITS[match[2]]
