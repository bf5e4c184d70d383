"""`mlxdist run --timeline`: one trace of all ranks, that adds up."""

import json
import sys

from mlxdist.comm.flight_recorder import Recorder
from mlxdist.world.timeline import events
from tests.support import jobs

TRAIN = """
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, mlxdist
world = mlxdist.init()
model = nn.Linear(64, 64)
optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), shard=True)
optimizer.init(model)
for _ in range(3):
    optimizer.update(model, model.parameters())
    mx.eval(model.parameters())
if world.rank and FAIL: raise ValueError("x")
"""


def test_a_trace_of_all_ranks(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN.replace("FAIL", "False"))
    command = [sys.executable, "-m", "mlxdist.cli", "run", "-n", "2"]
    ran = jobs.run(
        [*command, "--timeline", "traces/trace.json", "train.py"], cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    trace = json.loads((tmp_path / "traces/trace.json").read_text())["traceEvents"]
    for rank in (0, 1):
        own = [one for one in trace if one["pid"] == rank]
        calls = [one for one in own if one.get("cat") == "call"]
        updates = [one for one in calls if one["name"].endswith("update")]
        assert [x["args"]["step"] for x in updates] == [1, 2, 3]
        for update in updates:
            begin, end = update["ts"], update["ts"] + update["dur"]
            phases = [
                x["name"]
                for x in own
                if x.get("cat") == "phase" and begin <= x["ts"] + 1 <= end
            ]
            assert phases == ["gradient exchange", "optimizer and parameter exchange"]
        begun = {x["id"]: x["ts"] for x in own if x["ph"] == "b"}
        ended = {x["id"]: x["ts"] for x in own if x["ph"] == "e"}
        assert begun.keys() == ended.keys()
        assert all(begun[key] <= ended[key] for key in begun)
        assert {"sum_scatter", "all_gather"} <= {x["name"] for x in own}
    assert [x.name for x in (tmp_path / "traces").iterdir()] == ["trace.json"]


def test_a_job_that_dies_is_not_held_up(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN.replace("FAIL", "True"))
    command = [sys.executable, "-m", "mlxdist.cli", "run", "-n", "2"]
    ran = jobs.run([*command, "--timeline", "trace.json", "train.py"], cwd=tmp_path)
    assert ran.returncode == 1
    assert not (tmp_path / "trace.json").exists()


def test_a_clock_that_is_ahead():
    recorder = Recorder()
    recorder.keep_timeline()
    with recorder.call("update", 1):
        recorder.phase("exchange")
        recorder.started("all_sum").end = 5.0
    own = events(0, "h", recorder.spans, recorder.records)
    ahead = events(0, "h", recorder.spans, recorder.records, clock_offset=2.0)
    for one, other in zip(own, ahead, strict=True):
        assert one.get("ts", 2e6) - 2e6 == other.get("ts", 0)
    assert Recorder().spans is None
