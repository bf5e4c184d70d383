"""Labels and log files of the job's output."""

import os
import subprocess

import pytest

from mlxdist.launcher.output import Output
from mlxdist.launcher.tagged_stream import Piece, TaggedStream

TAG = b"[prterun-h-77@1,%d]<stdout>: "


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (TAG % 0 + b"hello\n", b"[rank 0] hello\n"),
        (TAG % 12 + b"  indented\n", b"[rank 12]   indented\n"),
        (b"plain\n", b"plain\n"),
        (
            TAG % 0 + b"no end" + TAG % 1 + b"no end",
            b"[rank 0] no end\n[rank 1] no end",
        ),
        (
            TAG % 0 + b"[1,0]<stdout>: x [prterun-h-7@1,1]<stdout>: y\n",
            b"[rank 0] [1,0]<stdout>: x [prterun-h-7@1,1]<stdout>: y\n",
        ),
        (TAG % 0 + b"\rbar\0\xff\n", b"[rank 0] \rbar\0\xff\n"),
        # The parts of a line that mpirun has read one by one.
        (
            TAG % 0 + b"a\nb" + TAG % 1 + b"c\n\n" + TAG % 0 + b"d\n",
            b"[rank 0] a\n[rank 1] c\n[rank 1] \n[rank 0] bd\n",
        ),
        (TAG % 0 + b"[prterun-h-77", b"[rank 0] [prterun-h-77"),
    ],
)
@pytest.mark.parametrize("size", [1, 9, 1000])
def test_render_labels_what_mpirun_has_tagged(data, expected, size, tmp_path):
    output = Output(run_dir=str(tmp_path), ranks=13, label=True)
    stream = TaggedStream(77, 1)
    pieces = [
        piece
        for start in range(0, len(data), size)
        for piece in stream.feed(data[start : start + size])
    ]
    shown = output.render([*pieces, *stream.close()])
    assert b"".join(text for _, text in shown) == expected


def test_render_labels_each_line_of_what_looks_like_a_message(tmp_path):
    output = Output(run_dir=str(tmp_path), ranks=2, label=True)
    lines = [74 * b"-" + b"\n", b"hello\n"]  # held back until the second one
    tag = TAG.replace(b"out", b"err") % 1
    data = b"".join(tag + line for line in lines)
    shown = list(output.render(TaggedStream(77, 1).feed(data)))
    assert {target for target, text in shown if text} == {2}
    assert b"".join(text for _, text in shown) == b"".join(
        b"[rank 1] " + line for line in lines
    )


LINES = """
import os, sys
for line in ("one", "", " two"):
    print(line)
print("trouble", file=sys.stderr)
print("x" * 100_000)
print("no end", end="")
"""


def test_label_begins_each_line_of_both_streams(run):
    done = run(LINES, ranks=2, options=["--label"])
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for rank in (0, 1):
        of_rank = [line for line in lines if line.startswith(f"[rank {rank}] ")]
        texts = ["one", "", " two", "x" * 100_000, "no end"]
        assert of_rank == [f"[rank {rank}] {text}" for text in texts]
    assert len(lines) == 10
    assert sorted(done.stderr.splitlines()) == ["[rank 0] trouble", "[rank 1] trouble"]


BAR_AND_PROMPT = """
import os, pathlib, sys, time
sys.stderr.write("\\r 10%")
sys.stdout.write("yes? ")
deadline = time.monotonic() + 90
while not pathlib.Path("seen").exists():
    assert time.monotonic() < deadline, "nobody has seen the bar and the prompt"
    time.sleep(0.01)
print("done")
print("100%", file=sys.stderr)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_lines_without_an_end_are_shown_as_they_come(ranks, run_command, tmp_path):
    (tmp_path / "script.py").write_text(BAR_AND_PROMPT)
    with subprocess.Popen(
        [*run_command, "-n", str(ranks), "script.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as job:
        shown = job.stdout.read(ranks * len("yes? ")), job.stderr.read(ranks * 5)
        (tmp_path / "seen").touch()
        rest = job.communicate(timeout=100)
    assert shown == (ranks * b"yes? ", ranks * b"\r 10%")
    assert (*rest, job.returncode) == (ranks * b"done\n", ranks * b"100%\n", 0)


def test_lines_without_an_end_stay_whole_in_a_file(run_command, tmp_path):
    source = (
        "import time\nfor i in range(3): print(i, end=''); time.sleep(0.2)\nprint()"
    )
    (tmp_path / "script.py").write_text(source)
    with (tmp_path / "log").open("wb") as log:
        command = [*run_command, "-n", "2", "script.py"]
        subprocess.run(command, cwd=tmp_path, stdout=log, check=True, timeout=100)
    assert (tmp_path / "log").read_bytes() == b"012\n012\n"


FAILS_ONCE = """
import os, sys
print("start", os.environ["MLXDIST_RESTARTS"])
sys.exit(int(os.environ["MLXDIST_RESTARTS"] == "0"))
"""


def test_log_dir_keeps_the_logs_of_a_start_that_failed(run, tmp_path):
    options = ["--max-restarts", "1", "--log-dir", "logs"]
    for _ in range(2):  # a new job starts new logs
        done = run(FAILS_ONCE, ranks=2, options=options)
        assert done.returncode == 0, done.stderr
        for rank in range(2):
            lines = (tmp_path / f"logs/rank-{rank}.log").read_text().splitlines()
            assert lines[-1] == "start 1"
            assert lines.count("start 1") == 1
    assert any("start 0" in f.read_text() for f in (tmp_path / "logs").iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_log_on_a_full_disk_ends_and_the_output_goes_on(tmp_path, capsys):
    with (
        open("/dev/full", "wb", buffering=0) as full,
        open(tmp_path / "rank-1.log", "wb", buffering=0) as log,
    ):
        output = Output(run_dir=str(tmp_path), ranks=2, logs={0: full, 1: log})
        pieces = [Piece(rank, 1, b"%d\n" % rank) for rank in (0, 1, 0, 1)]
        shown = b"".join(text for _, text in output.render(pieces))
    assert shown == b"0\n1\n0\n1\n"
    error = "mlxdist run: /dev/full ends here: No space left on device\n"
    assert capsys.readouterr().err == error
    assert (tmp_path / "rank-1.log").read_text() == "1\n1\n"
