"""Timeline: one Chrome trace of all ranks, from `mlxdist run --timeline`."""

import json
import sys

from mlxdist.comm.flight_recorder import Recorder
from mlxdist.world.timeline import events
from tests.support import jobs

TRAIN = """
import sys
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, mlxdist
world = mlxdist.init()
model = nn.Linear(64, 64)
optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=True)
optimizer.init(model)
for _ in range(3):
    optimizer.update(model, model.parameters())
    mx.eval(model.parameters())
if world.rank and "fail" in sys.argv: raise ValueError("x")
"""


def run_with_timeline(folder, path, *arguments):
    (folder / "train.py").write_text(TRAIN)
    command = [sys.executable, "-m", "mlxdist.cli", "run", "-n", "2"]
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
    assert {"reduce_scatter", "all_gather"} <= {event["name"] for event in events}


def test_timeline_of_a_job_has_the_calls_of_all_ranks(tmp_path):
    result = run_with_timeline(tmp_path, "traces/trace.json")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "traces").iterdir()
    assert path.name == "trace.json"
    trace = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in trace} == {0, 1}
    for rank in (0, 1):
        check_rank([event for event in trace if event["pid"] == rank])


def test_timeline_of_a_failed_job_is_not_written(tmp_path):
    result = run_with_timeline(tmp_path, "trace.json", "fail")
    assert result.returncode == 1
    assert not (tmp_path / "trace.json").exists()


def test_events_are_corrected_by_the_clock_offset():
    recorder = Recorder()
    assert recorder.spans is None
    recorder.keep_timeline()
    with recorder.call("update", 1):
        recorder.phase("exchange")
        recorder.started("all_sum").end = 5.0
    local = events(0, "h", recorder.spans, recorder.records)
    shifted = events(0, "h", recorder.spans, recorder.records, clock_offset=2.0)
    for event, corrected in zip(local, shifted, strict=True):
        assert event.get("ts", 2e6) - 2e6 == corrected.get("ts", 0)
