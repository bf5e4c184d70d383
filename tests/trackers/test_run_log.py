"""`RunLog`: reports of all ranks, and what they leave on disk."""

import json
import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.trackers import RunLog

pytestmark = pytest.mark.mpi


@pytest.fixture
def make(tmp_path, world):
    """A function that makes a run log, without progress."""

    def make_log(**options):
        options = {"world": world, "progress": None, **options}
        return RunLog(tmp_path / "run", **options)

    return make_log


def lines_of(folder):
    text = (folder / "run" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


class Kept:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.logged, self.finished = [], 0

    def log(self, step, values):
        self.logged.append((step, dict(values)))

    def finish(self):
        self.finished += 1


class Broken:
    """A tracker whose network is gone."""

    def log(self, step, values):
        raise OSError("no route to host")

    finish = log


def test_report_is_weighted_by_tokens_and_the_same_on_all_ranks(make, world):
    tokens = world.rank  # rank 0 has no rows, and a loss that is nan
    first = float(tokens) if tokens else math.nan
    with make(every=2) as log:
        assert log.step(first, tokens=tokens, grad_norm=1.0) is None
        report = log.step(mx.array(10.0 * tokens), tokens=tokens, grad_norm=2.5)
    total = sum(range(world.size))
    squares = sum(rank**2 for rank in range(world.size))
    if total:
        assert report.values["train_loss"] == pytest.approx(11 * squares / (2 * total))
        assert report.values["trained_tokens"] == 2 * total
    else:
        assert math.isnan(report.values["train_loss"])
    assert report.left_out == {}
    texts = world.control.all_gather_bytes(repr(report).encode())
    assert len(set(texts)) == 1


def test_report_of_mlx_lm_names_the_ranks_of_the_spread(make, world):
    info = {"iteration": 10, "iterations_per_second": 1 / (1.0 + world.rank)}
    with make() as log:
        values = log.on_train_loss_report(info).values
    assert (values["step_time_min"], values["step_time_min_rank"]) == (1, 0)
    assert values["step_time_max"] == pytest.approx(world.size)
    assert values["step_time_max_rank"] == world.size - 1
    assert values["step_time"] == pytest.approx((1 + world.size) / 2)
    assert "iteration" not in values


def test_wait_time_is_that_of_steps_alone(make, world):
    waits = world.recorder.waits.by_call
    with make(every=4) as log:
        for _ in range(3):
            waits["update"] += 2.0 * (1 + world.rank)
            log.step(1.0)
        with log.paused():
            waits[""] += 1000
        waits["save_checkpoint"] += 1000
        log.validation(1.0)
        first = log.step(1.0).values
        for _ in range(4):
            second = log.step(1.0)
    assert first["wait_time_min"] == pytest.approx(1.5, abs=0.2)
    assert first["wait_time_max"] == pytest.approx(1.5 * world.size, abs=0.2)
    # Nothing has waited since: only MLX itself could have.
    assert ("wait_time" in second.values) == (world.size == 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_value_that_a_rank_lacks_is_left_out(make, world, tmp_path, capsys, bad):
    last = world.size - 1
    info = {"iteration": 3, "train_loss": 2.0}
    if world.rank == last:
        info = {"iteration": 3, **({} if bad is None else {"train_loss": bad})}
    log = make()
    found = "nan" if bad is None else str(bad)
    if world.size == 1 and bad is None:
        assert "train_loss" not in log.on_train_loss_report(info).values
        return
    if world.is_root:
        message = f"step 3: train_loss is {found} on rank {last}, and left out"
        with pytest.warns(UserWarning, match=message):
            report = log.on_train_loss_report(info)
    else:
        report = log.on_train_loss_report(info)
    log.on_train_loss_report(info)  # warns once; an error would be printed
    assert capsys.readouterr().err == ""
    log.finish()
    assert report.left_out == {"train_loss": [last]}
    if world.is_root:
        line = lines_of(tmp_path)[0]
        assert line["train_loss"] == (2.0 if world.size > 1 else None)
        assert line["left_out"] == {"train_loss": [last]}


def test_value_that_is_no_number_on_one_rank_is_refused_on_all(make, world):
    is_last = world.rank == world.size - 1
    info = {"iteration": 1, "train_loss": "high" if is_last else 1.0}
    with make(every=2) as log:
        with pytest.raises(mlxdist.MismatchError, match="train_loss must be a number"):
            log.on_train_loss_report(info)
        log.step(1.0)
        with pytest.raises(mlxdist.MismatchError, match="train_loss must be a number"):
            log.step(mx.ones(3) if is_last else 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": math.nan}, "weight must be finite, and 0 or more; found nan"),
        ({"weight": -1}, "weight must be finite, and 0 or more; found -1"),
        ({"weight": "few"}, "weight must be a number"),
        ({"tokens": "few"}, "tokens must be a number|weight must be a number"),
        ({"step": 3}, "'step' is a name of the report's own"),
        ({"time": 3}, "'time' is a name of the report's own"),
    ],
)
def test_values_that_make_no_report_are_refused_on_all_ranks(
    make, world, options, message
):
    is_last = world.rank == world.size - 1
    with make(every=1) as log, pytest.raises(mlxdist.MismatchError, match=message):
        log.step(1.0, **(options if is_last else {}))


def test_tokens_in_arrays_are_counted_exactly(make, world):
    many = 2**24 + 1  # not exact as a float32
    with make(every=3) as log:
        for _ in range(3):
            report = log.step(1.0, tokens=mx.array(many))
    assert report.values["trained_tokens"] == 3 * many * world.size


@pytest.mark.mpi(min_size=2)
def test_reports_of_different_steps_are_refused_on_all_ranks(make, world):
    with make() as log, pytest.raises(mlxdist.MismatchError, match="step 1"):
        log.on_train_loss_report({"iteration": world.rank, "train_loss": 1.0})


@pytest.mark.mpi(min_size=2)
def test_logs_that_report_at_different_steps_are_refused_on_all_ranks(make, world):
    with pytest.raises(mlxdist.MismatchError, match="rank 0: steps None, every 10, "):
        make(done=world.rank)


@pytest.mark.parametrize(
    "option",
    [{"every": 0}, {"done": None}, {"done": -1}, {"done": 2.0}, {"progress": "rank"}],
    ids=str,
)
def test_wrong_options_of_one_rank_are_refused_on_all_ranks(make, world, option):
    is_last = world.rank == world.size - 1
    with pytest.raises(mlxdist.MismatchError, match=f"{next(iter(option))} must be"):
        make(**(option if is_last else {}))


def test_lines_have_step_time_and_what_was_validated(make, world, tmp_path):
    with make(every=2, steps=3) as log:
        for loss in (4.0, 2.0, 1.0):
            log.step(loss, weight=1)
        log.validation(float(world.rank), seconds=0.5, weight=1 + world.rank)
    if world.is_root:
        second, third, validation = lines_of(tmp_path)
        assert (second["step"], second["train_loss"]) == (2, 3.0)
        assert (third["step"], third["train_loss"]) == (3, 1.0)
        assert 0 <= second["time"] <= third["time"] <= validation["time"] < 60
        ranks = range(world.size)
        mean = sum(r * (1 + r) for r in ranks) / sum(1 + r for r in ranks)
        assert validation["val_loss"] == pytest.approx(mean)
        assert (validation["step"], validation["val_time"]) == (3, 0.5)


def test_resumed_run_continues_its_file_and_its_counts(make, world, tmp_path):
    with make(every=1) as log:
        for _ in range(4):
            log.step(1.0, tokens=10)
    if world.is_root:
        path = tmp_path / "run" / "metrics.jsonl"
        path.write_text(path.read_text() + '{"step": 5, "train')  # killed
    with make(every=1, done=2) as log:
        report = log.step(2.0, tokens=10)
    assert report.values["trained_tokens"] == 30 * world.size
    if world.is_root:
        lines = lines_of(tmp_path)
        assert [(x["step"], x["train_loss"]) for x in lines] == [(1, 1), (2, 1), (3, 2)]
        assert lines[2]["time"] >= lines[1]["time"]


def test_new_run_keeps_the_file_of_the_one_before(make, world, tmp_path):
    for loss in (1.0, 2.0):
        with make(every=1) as log:
            log.step(loss)
    if world.is_root:
        assert [line["train_loss"] for line in lines_of(tmp_path)] == [2.0]
        assert '"train_loss": 1.0' in (tmp_path / "run/metrics.jsonl.old").read_text()


def test_trackers_get_each_report_on_rank_0_alone(make, world):
    kept = Kept()
    with make(every=2, trackers=[kept]) as log:
        for _ in range(4):
            log.step(1.0)
    assert [step for step, _ in kept.logged] == ([2, 4] if world.is_root else [])
    assert all(values["train_loss"] == 1.0 for _, values in kept.logged)
    assert kept.finished == int(world.is_root)


def test_tracker_that_fails_warns_once_and_training_goes_on(make, world, recwarn):
    kept = Kept()
    with make(every=1, trackers=[Broken(), kept]) as log:
        log.step(1.0)
        log.step(1.0)
    texts = [str(each.message) for each in recwarn]
    expected = "Broken has missed the report of step 1, and training goes on"
    assert len(texts) == int(world.is_root)
    assert all(text.startswith(expected) for text in texts)
    assert all("OSError: no route to host" in text for text in texts)
    assert len(kept.logged) == (2 if world.is_root else 0)


def test_unknown_tracker_is_refused_on_all_ranks(make):
    with pytest.raises(mlxdist.MismatchError, match="wanted one of tensorboard, wandb"):
        make(trackers="tensorbored")


@pytest.mark.parametrize("tracker", [Kept, object()])
def test_tracker_without_methods_is_refused_on_all_ranks(make, tracker):
    with pytest.raises(mlxdist.MismatchError, match="object with the methods log"):
        make(trackers=[tracker])


def test_folder_that_rank_0_cannot_write_is_refused_on_all_ranks(make, world, tmp_path):
    if world.is_root:
        (tmp_path / "run").write_text("a file")
    with pytest.raises(mlxdist.MismatchError, match=r"Error: .*run"):
        make()


def test_run_json_describes_the_run_once_the_optimizer_is_initialized(
    make, world, tmp_path
):
    model = nn.Linear(3, 5)
    optimizer = mlxdist.DistributedOptimizer(optim.AdamW(0.5), shard=True, world=world)
    path = tmp_path / "run" / "run.json"
    with make(every=1, optimizer=optimizer, config={"dtype": mx.bfloat16}) as log:
        before = json.loads(path.read_text()) if world.is_root else {}
        optimizer.init(model)
        report = log.step(1.0)
    assert report.values["learning_rate"] == 0.5
    if world.is_root:
        info = json.loads(path.read_text())
        assert "parameters" not in before
        assert info["id"] == before["id"]
        assert info["hosts"] == [world.host] * world.size
        assert info["config"] == {"dtype": "bfloat16"}
        assert info["options"]["strategy"] == optimizer.options.strategy
        assert info["parameters"] == 20
        assert sum(info["state_bytes_by_rank"]) == 160


def test_log_without_a_folder_writes_nothing(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunLog(None, world=world, progress=None, every=1) as log:
        assert log.step(1.5).values["train_loss"] == 1.5
    assert list(tmp_path.iterdir()) == []
