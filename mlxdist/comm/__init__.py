"""Collectives: two transports, one wire over them, one agreement protocol."""

from .agreement import MismatchError, OnAllRanks, agree
from .collectives import Collectives, Pending, Traffic, Weights
from .flight_recorder import Recorder

__all__ = [
    "Collectives",
    "MismatchError",
    "OnAllRanks",
    "Pending",
    "Recorder",
    "Traffic",
    "Weights",
    "agree",
]
