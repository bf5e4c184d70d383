"""user_frames: the line of the user's code in a traceback or a stack."""

import json
import traceback
from pathlib import Path

import mlx.core
import pytest

from mlxdist.launcher import host_files
from mlxdist.launcher.user_frames import skip_start, user_location


def frames_of(function, *arguments):
    """Return the frames of the error that a function raises."""
    try:
        function(*arguments)
    except Exception as error:
        return traceback.extract_tb(error.__traceback__)
    raise AssertionError("it did not raise")


def frame(path, line):
    return traceback.FrameSummary(path, line, "f", lookup_line=False, line="")


def test_user_location_skips_frames_of_mlxdist_and_of_the_standard_library(monkeypatch):
    monkeypatch.chdir("/")
    line = frames_of.__code__.co_firstlineno + 3
    expected = f"{__file__.lstrip('/')}:{line}, in frames_of"
    assert user_location(frames_of(json.loads, "{")) == expected
    assert user_location(frames_of(host_files.read_hosts, Path("/none"))) == expected
    assert user_location(frames_of(json.loads, "{")[1:]) == ""
    assert user_location([]) == ""


def test_user_location_is_the_innermost_one_and_relative_to_the_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    script, library = str(tmp_path / "train.py"), json.__file__
    frames = [frame(script, 1), frame(library, 2), frame(script, 3), frame(library, 4)]
    assert user_location(frames) == "train.py:3, in f"
    assert user_location([frame("/tmp/train.py", 3)]) == "/tmp/train.py:3, in f"
    assert user_location([frame("<stdin>", 3)]) == "<stdin>:3, in f"
    assert user_location([frame("<frozen runpy>", 3)]) == ""


def test_user_location_of_an_installed_program_is_in_the_program():
    program, called = frame(pytest.__file__, 3), frame(mlx.core.__file__, 4)
    location = user_location([program, called, frame(host_files.__file__, 5)])
    assert location.endswith("pytest/__init__.py:3, in f")
    assert user_location([frame("/elsewhere/train.py", 1), program, called]) == (
        "/elsewhere/train.py:1, in f"
    )
    assert user_location([called]) == ""


def test_skip_start_drops_the_frames_that_start_the_script():
    library, script = frame(json.__file__, 1), frame("/elsewhere/train.py", 2)
    assert skip_start([library, library, script, library]) == [script, library]
    assert skip_start([library, library]) == [library, library]
