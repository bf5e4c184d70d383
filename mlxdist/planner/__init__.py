"""Predictions for `mlxdist plan`: memory and step time on N hosts, as pure arithmetic.

- memory_model: bytes per rank, from the parameters and the optimizer.
- time_model: seconds per step, from the bytes on the wire and the network links.
- measured_link: the link that `mlxdist doctor --json` measured.
- model_files: the parameters in safetensors files.
- prediction: the strategy to use, and all predictions for a number of hosts.
"""

from .measured_link import measured_link
from .memory_model import STATE_COPIES, Memory, Model, memory, model_of_size
from .model_files import model_of_files
from .prediction import MOST_IMBALANCE, Choice, Prediction, choose, predict
from .time_model import LINKS, Link, StepTime, ethernet, imbalance, step_time

__all__ = [
    "LINKS",
    "MOST_IMBALANCE",
    "STATE_COPIES",
    "Choice",
    "Link",
    "Memory",
    "Model",
    "Prediction",
    "StepTime",
    "choose",
    "ethernet",
    "imbalance",
    "measured_link",
    "memory",
    "model_of_files",
    "model_of_size",
    "predict",
    "step_time",
]
