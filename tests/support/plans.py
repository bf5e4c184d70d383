"""Models for the tests of the planner."""

from mlxdist.planner import Model, model_of_size

MB = 10**6


def model_of(elements: int, optimizer: str = "adamw", dtype: str = "float32") -> Model:
    """Return a model of equal matrices, in buckets of 1 MB."""
    return model_of_size(elements, dtype, optimizer, bucket_size=MB)
