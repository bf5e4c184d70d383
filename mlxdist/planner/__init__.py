"""Predictions for `mlxdist plan`: memory and step time on N hosts, as pure arithmetic.

- memory_model: the model, and the bytes of a rank (by the rules of layout/memory.py).
- choices: what changes the memory, the cheapest change of behaviour first.
- time_model: seconds per step, from the bytes on the wire and the network links.
- measured_link: the link that `mlxdist doctor --json` measured.
- model_files: the parameters in safetensors files.
- prediction: all predictions for a number of hosts.
"""

from .choices import CHANGES, MOST_IMBALANCE, Choice, list_choices, recommend
from .measured_link import measured_link
from .memory_model import Model, memory, model_of_size
from .model_files import model_of_files
from .prediction import Prediction, predict
from .time_model import (
    CPU_SECONDS_PER_BYTE,
    LINKS,
    Exchange,
    Link,
    StepTime,
    ethernet,
    imbalance,
    step_time,
)

__all__ = [
    "CHANGES",
    "CPU_SECONDS_PER_BYTE",
    "LINKS",
    "MOST_IMBALANCE",
    "Choice",
    "Exchange",
    "Link",
    "Model",
    "Prediction",
    "StepTime",
    "ethernet",
    "imbalance",
    "list_choices",
    "measured_link",
    "memory",
    "model_of_files",
    "model_of_size",
    "predict",
    "recommend",
    "step_time",
]
