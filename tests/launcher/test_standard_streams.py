"""`mlxdist run` with standard streams that are closed, full, or read by nobody."""

import io
import os
import shlex
import sys

import pytest

from mlxdist.launcher import standard_streams
from tests.support import jobs

MEAN = """
import os, mlxdist
print("rank", os.environ["OMPI_COMM_WORLD_RANK"], flush=True)
open("mark-" + os.environ["OMPI_COMM_WORLD_RANK"], "w").close()
mlxdist.init().mean(1.0)
"""


def test_output_that_a_terminal_can_not_show_is_escaped(monkeypatch):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    standard_streams.open_all()
    print("é\ud800", end="")
    assert written.getvalue() == rb"\xe9\ud800"


@pytest.fixture
def shell(tmp_path, run_command):
    """Runs a line of a shell, with `RUN` for `mlxdist run` on 2 ranks."""

    def start(line, source="pass"):
        (tmp_path / "script.py").write_text(source)
        run = shlex.join([*run_command, "-n", "2"])
        return jobs.run(["bash", "-c", line.replace("RUN", run)], cwd=tmp_path)

    return start


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-"])
def test_run_with_closed_streams_runs_the_job(shell, tmp_path, closed):
    done = shell(f"RUN script.py {closed}", MEAN)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.glob("mark-*"))) == 2


def test_run_in_a_loop_leaves_the_input_of_the_loop(shell):
    source = "import sys; print('did', sys.argv[1], repr(sys.stdin.read()))"
    line = "printf 'a\\nb\\n' | while read x; do RUN script.py $x; done"
    done = shell(line, source)
    assert sorted(done.stdout.splitlines()) == ["did a ''"] * 2 + ["did b ''"] * 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_run_on_a_full_disk_reports_it_and_keeps_the_exit_code(shell):
    done = shell("RUN script.py > /dev/full", "print('x', flush=True)")
    assert done.returncode == 0
    message = "mlxdist run: standard output ends here: No space left on device\n"
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_run_with_a_full_standard_error_keeps_the_exit_code(shell):
    done = shell("RUN script.py 2> /dev/full", "raise SystemExit('why')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize(
    ("option", "stream"),
    [("--help", "| true"), ("--dry-run script.py", "> /dev/full")],
)
def test_run_that_prints_where_nobody_reads_has_no_traceback(shell, option, stream):
    done = shell(f"RUN {option} {stream}")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_run_whose_stderr_nobody_reads_keeps_the_exit_code(shell):
    line = "RUN script.py 2> >(true); code=$?; echo $code"
    done = shell(line, "raise ValueError")
    assert done.stdout == "1\n"


NONBLOCKING = """
import os, subprocess, sys, time
reader, writer = os.pipe()
os.set_blocking(writer, False)
job = subprocess.Popen(sys.argv[1:], stdout=writer)
os.close(writer)
time.sleep(1.5)
text = b""
while data := os.read(reader, 2**20):
    text += data
print(len(text), job.wait())
"""


def test_run_with_a_nonblocking_stdout_loses_nothing(shell, tmp_path):
    (tmp_path / "reader.py").write_text(NONBLOCKING)
    python = shlex.quote(sys.executable)
    done = shell(f"{python} reader.py RUN script.py", "print('x' * 300_000)")
    assert done.stdout == "600002 0\n", done.stderr


def test_print_to_a_descriptor_above_1023_arrives(many_descriptors):
    read, write = os.pipe()
    assert write > 1023
    with os.fdopen(read) as reader:
        with os.fdopen(write, "w") as stream:
            standard_streams.print_in_time("text", stream, timeout=1.0)
        assert reader.read() == "text"
