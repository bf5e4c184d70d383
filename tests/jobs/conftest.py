"""The scripts of launch/ as modules."""

import pytest

from tests.support.jobs import LAUNCH


@pytest.fixture
def launch(monkeypatch, shared_folder):
    """Make launch/'s modules importable, and run in an empty folder of all ranks."""
    monkeypatch.syspath_prepend(LAUNCH)
    monkeypatch.chdir(shared_folder)
    return shared_folder
