"""Fixtures of the launcher's tests: `mlxdist run` as a program, and as a function."""

import subprocess

import pytest

from mlxdist import cli
from tests.support import jobs


@pytest.fixture
def run_command():
    """The beginning of a command line of `mlxdist run`."""
    return jobs.MLXDIST_RUN


@pytest.fixture
def run(tmp_path, run_command):
    """Runs a script's source with `mlxdist run`; `ranks` are those of this machine."""

    def start(source, *arguments, ranks=None, options=(), env=None, timeout=100.0):
        (tmp_path / "script.py").write_text(source)
        numbers = [] if ranks is None else ["-n", str(ranks)]
        command = [*run_command, *numbers, *options, "script.py", *arguments]
        return jobs.run(command, cwd=tmp_path, env=env, timeout=timeout)

    return start


@pytest.fixture
def no_programs(monkeypatch):
    """Makes a test fail that starts any program."""

    def fail(*_arguments, **_options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", fail)


@pytest.fixture
def main():
    """Calls the command `mlxdist`, and returns its exit code."""

    def call(*arguments):
        try:
            return cli.main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            return leaving.code

    return call
