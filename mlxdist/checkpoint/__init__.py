"""Checkpoints: saved in shards, committed by one rename, loaded on any rank count."""

from ..comm.together import CheckpointError
from .api import Loaded, load_checkpoint, save_checkpoint

__all__ = ["CheckpointError", "Loaded", "load_checkpoint", "save_checkpoint"]
