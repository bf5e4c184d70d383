"""Labels and log files of the job's output."""

import os

import pytest

from mlxdist.launcher.output import Output
from mlxdist.launcher.tagged_stream import TaggedStream

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
    ],
)
@pytest.mark.parametrize("size", [1, 9, 1000])
def test_render_labels_what_mpirun_has_tagged(data, expected, size, tmp_path):
    output = Output(run_dir=str(tmp_path), ranks=13, label=True)
    stream = TaggedStream(77)
    text = b"".join(
        output.render(stream.feed(data[start : start + size]), 1)
        for start in range(0, len(data), size)
    )
    assert text + output.render(stream.close(), 1) == expected


def test_render_labels_each_line_of_what_looks_like_a_message(tmp_path):
    output = Output(run_dir=str(tmp_path), ranks=2, label=True)
    lines = [74 * b"-" + b"\n", b"hello\n"]  # held back until the second one
    data = b"".join(TAG % 1 + line for line in lines)
    text = output.render(TaggedStream(77).feed(data), 2)
    assert text == b"".join(b"[rank 1] " + line for line in lines)


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
def test_log_dir_on_a_full_disk_ends_a_log_and_keeps_the_output(run, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-0.log").symlink_to("/dev/full")
    source = "for number in range(9): print(number)"
    done = run(source, ranks=2, options=["--log-dir", "logs"])
    assert done.returncode == 0
    assert sorted(done.stdout.split()) == sorted(2 * [str(n) for n in range(9)])
    assert done.stderr.count("logs/rank-0.log ends here: No space left on device") == 1
    assert (tmp_path / "logs/rank-1.log").read_text().split() == list("012345678")
