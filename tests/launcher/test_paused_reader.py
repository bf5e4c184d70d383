"""Standard streams whose reader pauses for ever: nothing waits without a bound."""

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlxdist.launcher.standard_streams import print_in_time, write_all
from mlxdist.world import hooks
from tests.support import jobs


@pytest.fixture
def full_pipe():
    """The end of a pipe that takes no more, and blocks."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


def test_write_all_to_a_reader_that_pauses_raises(full_pipe):
    with pytest.raises(TimeoutError):
        write_all(full_pipe, b"text", 0.1)


def test_write_all_to_a_reader_that_goes_on_writes_all():
    reader, writer = os.pipe()
    data = os.urandom(300_000)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_all, writer, data, 5.0)
        received = b""
        while len(received) < len(data):
            received += os.read(reader, 2**16)
        writing.result()
    os.close(reader)
    os.close(writer)
    assert received == data


@pytest.mark.parametrize("text", ["the job ends\n", "\u2603" * 100_000])
def test_print_in_time_to_a_reader_that_pauses_gives_up(text, full_pipe):
    start = time.monotonic()
    with open(full_pipe, "w", closefd=False) as stream:
        print_in_time(text, stream, timeout=0.001)
    assert time.monotonic() - start < 5


def test_log_and_flush_with_a_reader_that_pauses_return(full_pipe, monkeypatch):
    with open(full_pipe, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        start = time.monotonic()
        hooks.log("the job ends\n" * 1000)
        hooks.flush_output()
        seconds = time.monotonic() - start
        monkeypatch.undo()
    assert seconds < 5


def test_print_in_time_to_a_reader_of_everything_writes_it_once(tmp_path):
    text = "x\u2603\n" * 5000
    with (tmp_path / "file").open("w", encoding="utf-8") as stream:
        print_in_time(text, stream, timeout=1.0)
    assert (tmp_path / "file").read_text(encoding="utf-8") == text


COPY = """
import os, sys, threading
from mlxdist.launcher.output import Output
from mlxdist.launcher.standard_streams import print_error
from mlxdist.launcher import standard_streams
standard_streams._PRINT_TIMEOUT = 0.2
output = Output(run_dir="", ranks=1, label=True)
reader, writer = os.pipe()
output.copy(os.fdopen(reader, "rb"), int(sys.argv[1]), 1)
os.write(writer, b"x" * 60_000 + b"\\n")
os.write(writer, b"x" * 60_000 + b"\\n")
os.close(writer)
output.finish(0.5)
output.add(0, "why" * 60_000, "why" * 60_000)
output.print_messages()
for _ in range(5):
    print_error("mlxdist run: rank 0 failed" * 1000)
os._exit(3)
"""


@pytest.mark.parametrize("target", ["1", "2"])
def test_output_that_nobody_reads_does_not_keep_the_launcher(target, tmp_path):
    with jobs.start([sys.executable, "-c", COPY, target], cwd=tmp_path) as process:
        try:
            assert process.wait(timeout=100) == 3
        finally:
            jobs.end_session(process.pid)


@pytest.mark.long
@pytest.mark.parametrize("option", ["--label", None])
def test_run_whose_outputs_are_paused_ends_after_its_timeout(option, tmp_path):
    (tmp_path / "script.py").write_text(
        "import sys\nwhile True: print('x' * 1000); print('y', file=sys.stderr)"
    )
    options = ["-n", "2", "--timeout", "3", *filter(None, [option]), "script.py"]
    process = jobs.start([*jobs.MLXDIST_RUN, *options], cwd=tmp_path)
    try:
        assert process.wait(timeout=100) == 124
    except subprocess.TimeoutExpired:
        pytest.fail("it waits for its reader")
    finally:
        jobs.end_session(process.pid)
        process.communicate()
