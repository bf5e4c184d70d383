"""Fixtures for the tests of the transports."""

import pytest

from mlxdist.comm import chain, exchange


@pytest.fixture(params=["whole", "in pieces"])
def message_limits(request, monkeypatch):
    """The usual limits, then limits so low that every array is sent in pieces."""
    if request.param == "in pieces":
        monkeypatch.setattr(exchange, "ROUND_BYTES", 256)
        monkeypatch.setattr(exchange, "BLOCK", 10)
        monkeypatch.setattr(chain, "MAX_BYTES", 400)
