"""Checkpoints: saved in shards, committed by one rename, loaded on any rank count."""

from .api import Loaded, load_checkpoint, save_checkpoint
from .collective import CheckpointError

__all__ = ["CheckpointError", "Loaded", "load_checkpoint", "save_checkpoint"]
