"""Timeline: one Chrome trace of all ranks, from `mlxdist run --timeline`."""

import itertools
import json
import threading
import time

import pytest

from mlxdist.comm.flight_recorder import Recorder, Span
from mlxdist.report import summarize
from mlxdist.world.clocks import Alignment, Offset, same_clock
from mlxdist.world.timeline import add_events
from mlxdist.world.trace_events import Process
from tests.support import jobs

TRAIN = """
import os, signal, sys, time
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, mlxdist
world = mlxdist.init()
model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=True)
optimizer.init(model)
for _ in range(3):
    optimizer.update(model, model.parameters())
    mx.eval(model.parameters())
world.barrier()
if world.rank == world.size - 1 and len(sys.argv) > 1:
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
    if "term" in sys.argv:
        os.kill(os.getppid(), signal.SIGTERM)  # mpirun
        mx.eval(mx.ones((4096, 4096)) @ mx.ones((4096, 4096)))  # runs no Python
    raise ValueError("x")
if len(sys.argv) > 1: time.sleep(30)
"""


def run_with_timeline(folder, path, *arguments, ranks=2):
    (folder / "train.py").write_text(TRAIN)
    command = [*jobs.MLXDIST_RUN, "-n", str(ranks)]
    command += ["--timeline", path, "train.py", *arguments]
    return jobs.run(command, cwd=folder)


def check_rank(events):
    """Assert that a rank's trace has three updates, their phases and collectives."""
    calls = [event for event in events if event.get("cat") == "call"]
    updates = [call for call in calls if call["name"].endswith("update")]
    assert [update["args"]["step"] for update in updates] == [1, 2, 3]
    for update in updates:
        start, end = update["ts"], update["ts"] + update["dur"]
        phases = [
            event["name"]
            for event in events
            if event.get("cat") == "phase" and start <= event["ts"] + 1 <= end
        ]
        assert phases == ["gradient exchange", "optimizer and parameter exchange"]
    starts = {event["id"]: event["ts"] for event in events if event["ph"] == "b"}
    ends = {event["id"]: event["ts"] for event in events if event["ph"] == "e"}
    assert starts.keys() == ends.keys()
    assert all(starts[key] <= ends[key] for key in starts)
    contents = "bucket 0: layers.1.bias and 3 more"
    names = {event["name"] for event in events}
    assert {f"reduce_scatter, {contents}", f"all_gather, {contents}"} <= names
    assert "waiting in gradient exchange" in names


def test_timeline_of_a_job_has_the_calls_of_all_ranks(tmp_path):
    result = run_with_timeline(tmp_path, "traces/trace.json")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "traces").iterdir()
    assert path.name == "trace.json"
    trace = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in trace} == {0, 1}
    for rank in (0, 1):
        check_rank([event for event in trace if event["pid"] == rank])
    found = summarize(path)  # refuses a trace that is not valid
    assert (found.steps, found.clock_error, found.starts_only) == (3, 0.0, 0)
    for each in found.ranks:
        assert sum(each.parts.values()) == pytest.approx(each.wall)
        assert each.is_complete


def pids(path):
    trace = json.loads(path.read_text())["traceEvents"]
    return {event["pid"] for event in trace}


@pytest.mark.parametrize(
    ("how", "ranks", "written"),
    [
        ("raise", 1, {0}),
        pytest.param("raise", 2, {0, 1}, marks=pytest.mark.long),
        ("kill", 3, {0, 1}),
    ],
)
def test_timeline_of_a_failed_job_has_its_ranks(how, ranks, written, tmp_path):
    (tmp_path / "trace.json").write_text("of an earlier job")
    result = run_with_timeline(tmp_path, "trace.json", how, ranks=ranks)
    assert result.returncode == (137 if how == "kill" else 1)
    assert pids(tmp_path / "trace.json") == written, result.stderr


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.long)])
def test_timeline_of_a_job_that_is_ended_has_its_ranks(ranks, tmp_path):
    result = run_with_timeline(tmp_path, "trace.json", "term", ranks=ranks)
    assert result.returncode != 0
    assert pids(tmp_path / "trace.json") == set(range(ranks)), result.stderr
    found = summarize(tmp_path / "trace.json")
    assert [each.is_complete for each in found.ranks] == ranks * [False]
    assert found.steps == 3


CLOSE = """
assert open("t.json").read() == '{"traceEvents": []}\\n'
reader, writer = os.pipe()
child = os.fork()
if not child: os.write(writer, b"x"); time.sleep(30)
os.read(reader, 1)
os.kill(child, signal.SIGTERM)  # reaches the child alone
assert os.waitpid(child, 0)[1] == signal.SIGTERM
time.sleep(0.1)
world.close()
assert os.path.exists("t.json")
assert sys.excepthook is sys.__excepthook__
"""


@pytest.mark.parametrize("end", ["", CLOSE])
def test_timeline_of_one_rank_is_written_at_its_end(end, mpi_job, tmp_path):
    result = mpi_job(1, TRAIN + end, env={"MLXDIST_TIMELINE": "t.json"})
    assert result.returncode == 0, result.stderr
    assert pids(tmp_path / "t.json") == {0}


def test_timeline_that_cannot_be_written_is_one_line_of_an_error(mpi_job):
    script = 'import mlxdist, os; mlxdist.init(); os.remove("t.json")\n'
    script += 'os.mkdir("t.json"); raise ValueError("x")'
    result = mpi_job(1, script, env={"MLXDIST_TIMELINE": "t.json"})
    assert result.stderr.count("Traceback") == 1, result.stderr
    assert "\nValueError: x\n" in result.stderr
    assert "mlxdist: error: the timeline t.json can't be written" in result.stderr


def test_add_events_of_several_processes_makes_one_trace(tmp_path):
    path = tmp_path / "new" / "trace.json"
    parts = [[{"pid": rank, "ts": i} for i in range(500)] for rank in range(8)]
    threads = [threading.Thread(target=add_events, args=(path, p)) for p in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace = json.loads(path.read_text())["traceEvents"]
    assert sorted(trace, key=lambda event: event["pid"]) == [*itertools.chain(*parts)]
    assert [file.name for file in path.parent.iterdir()] == ["trace.json"]


def test_events_are_times_of_rank_0_since_the_start():
    recorder = Recorder()
    assert recorder.spans is None
    recorder.keep_timeline()
    with recorder.call("update", 1):
        recorder.phase("exchange")
        recorder.started("all_sum").end = time.time() + 1
    alignment = Alignment(Offset(0.0, 2.0, 1e-5), Offset(0.0, 2.0, 2e-5))
    (span, call), (record,) = recorder.spans, recorder.records
    process = Process(
        1, 2, "h", span.start, call.end, span.start - 3, alignment, False, True
    )
    name, *_, phase, update, begin, end = process.events([span, call], [record])
    assert (phase["ts"], phase["cat"]) == (1e6, "phase")
    assert update["ts"] == pytest.approx(1e6 + (call.start - span.start) * 1e6, abs=0.1)
    assert update["dur"] == pytest.approx((call.end - call.start) * 1e6, abs=0.1)
    assert end["ts"] - begin["ts"] == pytest.approx(
        (record.end - record.start) * 1e6, abs=0.1
    )
    args = {"rank": 1, "host": "h", "start": 1e6, "clock_error": 20.0}
    assert args.items() <= name["args"].items()


def test_call_during_which_the_clock_is_set_back_has_no_duration():
    same = Alignment(same_clock(), same_clock())
    process = Process(0, 1, "h", 0.0, 9.0, 0.0, same, False, True)
    span = Span("call", "update", 1, start=5.0, end=4.0)
    assert process.events([span], [])[-1]["dur"] == 0.0
