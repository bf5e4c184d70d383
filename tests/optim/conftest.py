"""Fixtures for the tests of the optimizer."""

import pytest

from mlxdist.comm import wire
from mlxdist.layout import buckets
from mlxdist.optim import optimizer


@pytest.fixture
def compiled_always(monkeypatch):
    """Compile the local update of small models too.

    Tensors of 4 kB get a bucket of their own, and the gradients' finiteness is checked
    before the exchange whatever their size.
    """
    monkeypatch.setattr(optimizer, "COMPILED_FROM", 0)
    monkeypatch.setattr(buckets, "ALONE_FROM", 4096)
    monkeypatch.setattr(wire, "_LARGE", 64)
