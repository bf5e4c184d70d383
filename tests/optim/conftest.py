"""Fixtures for the tests of the optimizer."""

import pytest

from mlxdist.layout import buckets
from mlxdist.optim import compilation, grad_norm


@pytest.fixture
def compiled_always(monkeypatch):
    """Compile the local update of small models too.

    Tensors of 4 kB get a bucket of their own, and the gradients' finiteness is checked
    before the exchange whatever their size.
    """
    monkeypatch.setattr(compilation, "COMPILED_FROM", 0)
    monkeypatch.setattr(buckets, "ALONE_FROM", 4096)
    monkeypatch.setattr(grad_norm, "STREAM_FROM", 64)
