"""Services: each is given a run's name, its folder and its id, and all values."""

import json
import math
import struct
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from mlxdist.trackers import RunLog, services

INFO = {"id": "0badcafe", "ranks": 2}
VALUES = {"train_loss": 1.5, "val_loss": math.nan}


class FakeRun:
    """A run of wandb or swanlab, which keeps what it is given."""

    def __init__(self, **options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def fake(monkeypatch):
    """A function that puts a stand-in for a package; returns the runs it starts."""

    def put(name):
        module, runs = ModuleType(name), []

        def init(**options):
            runs.append(FakeRun(**options))
            return runs[-1]

        module.init = init
        monkeypatch.setitem(sys.modules, name, module)
        return runs

    return put


@pytest.mark.parametrize(
    ("name", "folder"), [("wandb", ("dir", "")), ("swanlab", ("log_dir", "/swanlog"))]
)
def test_service_gets_the_run_and_its_reports(
    fake, tmp_path, monkeypatch, name, folder
):
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    runs = fake(name)
    tracker = services.make(name, services.Run(tmp_path / "a", INFO, 0))
    tracker.log(3, VALUES)
    tracker.finish()
    (run,) = runs
    assert run.options[folder[0]] == f"{tmp_path}/a{folder[1]}"
    del run.options[folder[0]]
    expected = {"name": "a", "id": "0badcafe", "resume": "allow", "config": INFO}
    assert run.options == {**expected, "project": "mlxdist"}
    (step, values), *more = run.logged
    assert (step, values["train_loss"], more) == (3, 1.5, [])
    assert run.finished
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "mine")
    services.make(name, services.Run(tmp_path / "a", INFO, 0))
    assert runs[1].options["project"] == "mine"


@pytest.mark.mpi
def test_resumed_run_has_the_id_of_its_first_job(fake, tmp_path, world):
    runs = fake("wandb")
    ids = []
    for done in (0, 5, 0):
        options = {"world": world, "progress": None, "trackers": ["wandb"]}
        with RunLog(tmp_path / "run", done=done, **options):
            pass
        if world.is_root:
            info = json.loads((tmp_path / "run" / "run.json").read_text())
            assert runs[-1].options["id"] == info["id"]
            assert runs[-1].finished
            ids.append(info["id"])
    assert len(runs) == (3 if world.is_root else 0)
    assert len(set(ids)) == (2 if world.is_root else 0)
    assert ids[:1] == ids[1:2]


@pytest.mark.mpi
@pytest.mark.parametrize("name", services.NAMES)
def test_missing_package_is_refused_on_all_ranks(monkeypatch, tmp_path, world, name):
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = f"needs the package {package}: pip install 'mlxdist.{name}.'"
    with pytest.raises(ValueError, match=message):
        RunLog(tmp_path / "run", world=world, progress=None, trackers=[name])


@pytest.mark.mpi
def test_service_that_can_not_start_is_left_out(monkeypatch, tmp_path, world, recwarn):
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # without `init`
    options = {"world": world, "progress": None, "trackers": ["wandb"], "every": 1}
    with RunLog(tmp_path / "run", **options) as log:
        log.step(1.0)
    texts = [str(each.message) for each in recwarn]
    assert len(texts) == int(world.is_root)
    assert all("'wandb' can't start, and training goes on" in text for text in texts)


def tags_of(path):
    """Return the tags, steps and values of an event file of TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    data, events, start = path.read_bytes(), [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        events.append(Event.FromString(data[start + 12 : start + 12 + length]))
        start += length + 16  # with two checksums
    return [(v.tag, e.step, v.simple_value) for e in events for v in e.summary.value]


def test_tensorboard_has_the_values_in_an_event_file(tmp_path):
    tracker = services.make("tensorboard", services.Run(tmp_path, INFO, 2))
    tracker.log(3, {"train_loss": 1.5, "step_time": 0.25})
    tracker.finish()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert tags_of(path) == [("train_loss", 3, 1.5), ("step_time", 3, 0.25)]


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "wandb",
        pytest.param(
            "swanlab",
            marks=pytest.mark.skipif(
                find_spec("swanlab") is None, reason="swanlab is not installed"
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_service_without_a_network_keeps_a_run_in_the_folder(
    tmp_path, monkeypatch, name
):
    monkeypatch.setenv(f"{name.upper()}_MODE", "offline")
    options = {"progress": None, "trackers": [name], "every": 1}
    with RunLog(tmp_path / "run", **options) as log:
        for loss in (3.0, 2.0):
            log.step(loss)
    suffix = {"wandb": "*.wandb", "swanlab": "*.swanlab"}[name]
    (file,) = {path.resolve() for path in (tmp_path / "run").rglob(suffix)}
    assert b"train_loss" in file.read_bytes()
