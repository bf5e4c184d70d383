"""The quickstart's model and its text, from launch/, for ranks and benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch"))

from corpus import read_corpus, windows
from model import Transformer, loss_of, make_optimizer

__all__ = ["Transformer", "loss_of", "make_optimizer", "read_corpus", "windows"]
