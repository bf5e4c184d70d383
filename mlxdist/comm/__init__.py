"""Collectives: two transports, one wire over them, one agreement protocol.

A new transport implements `collectives.Collectives`; a new wire format is a matter of
`reduction` (how numbers are added) and `exchange` (which bytes travel).
"""

from .agreement import MismatchError, OnAllRanks, agree
from .collectives import Collectives, Pending, Traffic
from .flight_recorder import Recorder
from .reduction import Weights
from .wire import Wire

__all__ = [
    "Collectives",
    "MismatchError",
    "OnAllRanks",
    "Pending",
    "Recorder",
    "Traffic",
    "Weights",
    "Wire",
    "agree",
]
