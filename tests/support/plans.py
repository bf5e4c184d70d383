"""Entries and models for the tests of plans."""

from mlxdist.layout import Entry, KeyPath
from mlxdist.planner import Model, model_of_size

MB = 10**6


def make_entry(path: str, shape: tuple[int, ...], dtype: str = "float32") -> Entry:
    """Return an entry with the path of a text, such as "layers.0.weight"."""
    return Entry(KeyPath.parse(path), shape, dtype)


def model_of(elements: int, optimizer: str = "adamw", dtype: str = "float32") -> Model:
    """Return a model of equal matrices, in buckets of 1 MB."""
    return model_of_size(elements, dtype, optimizer, bucket_size=MB)
