"""`mlxdist plan`: what it predicts, against plain arithmetic and real optimizers."""

import json
import struct

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from mlxdist.layout.entries import Entry
from mlxdist.planner import memory_model as sizes
from mlxdist.planner import time_model as predict
from mlxdist.planner.memory_model import Model
from mlxdist.planner.time_model import LINKS, Link
from tests.support import examples

MB = 10**6


def of_size(elements, optimizer="adamw", dtype="float32"):
    return sizes.model_of_size(elements, dtype, optimizer, bucket_size=MB)


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_memory_of_adamw(ranks):
    model = of_size(25_600_000)
    whole = sizes.memory(model, ranks, "replicated")
    assert (whole.parameters, whole.gradients) == (102_400_000, 102_400_000)
    assert whole.state == 204_800_000
    shared = sizes.memory(model, ranks, "elements")
    assert shared.state == pytest.approx(204_800_000 / ranks, rel=0.001)
    assert (shared.buffers > 0) == (ranks > 1)
    owned = sizes.memory(model, ranks, "tensors").state
    assert 204_800_000 / ranks <= owned <= 204_800_000 / ranks * 4 / 3 + 800_000


# Names of the command, and the classes that they stand for
REAL = {
    "sgd": lambda: optim.SGD(1e-2),
    "rmsprop": lambda: optim.RMSprop(1e-2),
    "adagrad": lambda: optim.Adagrad(1e-2),
    "adadelta": lambda: optim.AdaDelta(1e-2),
    "adam": lambda: optim.Adam(1e-2),
    "adamw": lambda: optim.AdamW(1e-2),
    "adamax": lambda: optim.Adamax(1e-2),
    "lion": lambda: optim.Lion(1e-2),
    "muon": lambda: optim.Muon(1e-2),
    "adafactor": lambda: optim.Adafactor(),
}


@pytest.mark.parametrize("name", sizes.STATE_COPIES)
def test_state_is_what_mlx_keeps(name):
    model = examples.Net()
    model.unfreeze()
    optimizer = REAL[name]()
    optimizer.init(model.trainable_parameters())
    kept = sum(
        leaf.nbytes
        for path, leaf in tree_flatten(optimizer.state)
        if path not in ("step", "learning_rate") and leaf.size
    )
    entries = tuple(
        Entry(path, tuple(leaf.shape), "float32")
        for path, leaf in tree_flatten(model.trainable_parameters())
    )
    found = sizes.memory(Model(entries, name, MB), 1, "replicated").state
    assert found == kept


def test_time_is_bytes_over_bandwidth_and_messages():
    model = of_size(25_600_000)
    link = Link("x", 1e8, 0.0)
    for ranks in (2, 4, 64):
        time = predict.step_time(model, ranks, "elements", link, local=1.0)
        assert time.wire == pytest.approx(2 * (ranks - 1) / ranks * 1.024)
        assert time.longest == pytest.approx(1 + time.wire)
        assert 1 + time.wire / 2 <= time.shortest < time.longest
    late = predict.step_time(model, 4, "elements", Link("x", 1e8, 1e-3), local=1.0)
    soon = predict.step_time(model, 4, "elements", link, local=1.0)
    buckets = len(model.plan(4, "elements").buckets)
    assert late.wire - soon.wire == pytest.approx(2 * buckets * 3 * 1e-3)
    air = Link("x", 1e8, 0.0, shared=True)
    shared = predict.step_time(model, 4, "elements", air, local=1.0)
    assert shared.wire == pytest.approx(8 * soon.wire)


def test_16_bit_gradients_travel_as_they_are_over_hosts():
    args = {"link": Link("x", 1e8, 0.0), "local": 0.0}
    narrow = of_size(25_600_000, dtype="bfloat16")
    shared = predict.step_time(narrow, 4, "elements", **args).wire
    assert shared == pytest.approx(2 * 3 / 4 * 0.512)
    assert predict.step_time(narrow, 4, "replicated", **args).wire == shared


def test_means_of_replicated_state_hide_as_their_gradients_do():
    link, model = Link("x", 1e8, 0.0), of_size(25_600_000)
    times = {m: predict.step_time(model, 2, m, link, local=9.0) for m in model.modes}
    assert times["replicated"].wire == times["elements"].wire
    assert times["replicated"].hidden == pytest.approx(2 * times["elements"].hidden)


def test_no_more_is_hidden_than_computing_takes():
    model = of_size(25_600_000)
    time = predict.step_time(model, 4, "elements", Link("x", 1e6, 0.0), local=0.3)
    assert time.hidden == pytest.approx(0.2)
    one = predict.step_time(model, 1, "replicated", LINKS["1gbe"], local=0.3)
    assert (one.wire, one.longest) == (0.0, 0.3)


def test_sharing_divides_the_update():
    args = {"local": 1.0, "update": 0.4}
    shared = predict.step_time(of_size(MB), 4, "elements", LINKS["10gbe"], **args)
    whole = predict.step_time(of_size(MB), 4, "replicated", LINKS["10gbe"], **args)
    assert shared.local == pytest.approx(0.7)
    assert whole.local == 1.0


def test_the_owner_of_a_large_tensor_sends_for_long():
    entries = (Entry("a", (MB,), "float32"), Entry("b", (10,), "float32"))
    model = Model(entries, "muon", MB)
    time = predict.step_time(model, 4, "tensors", Link("x", 1e6, 0.0), local=0.0)
    assert time.wire == pytest.approx(2 * 3 * 4, rel=0.01)


@pytest.mark.parametrize(
    ("optimizer", "ranks", "room", "mode", "why"),
    [
        ("adamw", 4, None, "elements", "saves"),
        ("sgd", 4, None, "elements", "saves"),
        ("muon", 4, None, "tensors", "saves"),
        ("adafactor", 4, None, "replicated", "sharing saves"),
        ("adamw", 1, None, "replicated", "nothing to share"),
        ("adamw", 4, 1e3, "elements", "nothing fits"),
        ("adamw", 1, 1e3, "replicated", "nothing fits"),
    ],
)
def test_the_choice_and_its_reason(optimizer, ranks, room, mode, why):
    found = predict.choice(of_size(10 * MB, optimizer), ranks, room)
    assert found.mode == mode
    assert why in found.why
    assert found.fits == ("nothing fits" not in why)
    assert found.mode in of_size(MB, optimizer).modes


def test_whoever_owns_a_large_tensor_sends_too_much():
    """One embedding of a third of all: sharing by tensors takes the wire for long."""
    entries = [Entry("embed", (50, MB), "bfloat16")]
    entries += [Entry(f"{i}", (1000, 1000), "bfloat16") for i in range(100)]
    model = Model(tuple(entries), "muon", MB)
    assert predict.unevenness(model, 2, "tensors") == 1
    assert predict.unevenness(model, 12, "tensors") == pytest.approx(4, rel=0.1)
    link = Link("x", 1e9, 0.0)
    times = {
        mode: predict.step_time(model, 12, mode, link, local=0.0).wire
        for mode in model.modes
    }
    assert times["tensors"] == pytest.approx(4 * times["replicated"], rel=0.1)
    assert predict.choice(model, 2).mode == "tensors"
    found = predict.choice(model, 12)
    assert found.mode == "replicated"
    assert "sends 4.0 times as much" in found.why
    needs = sizes.memory(model, 12, "replicated").total
    found = predict.choice(model, 12, room=needs - 1)
    assert (found.mode, found.fits) == ("tensors", True)
    assert "sends 4.0 times as much" in found.why


def test_what_does_not_fit_is_told_for_one_host_and_before_what_is_saved():
    assert not predict.choice(of_size(MB), 1, room=MB).fits
    model = of_size(MB, "adafactor")  # sharing saves next to nothing
    shared = sizes.memory(model, 4, "tensors").total
    assert shared < sizes.memory(model, 4, "replicated").total
    found = predict.choice(model, 4, room=shared)
    assert (found.mode, found.fits) == ("tensors", True)


def test_sixty_four_ranks_of_a_large_model_are_planned_at_once():
    model = sizes.model_of_size(70 * 10**9, "bfloat16", "adamw", bucket_size=32 * 2**20)
    assert sizes.memory(model, 64, "elements").state == pytest.approx(
        70e9 * 4 / 64, rel=0.01
    )


# Files


def test_a_safetensors_file(tmp_path):
    model = nn.Linear(20, 30)
    model.set_dtype(mx.bfloat16)
    arrays = {**dict(tree_flatten(model.parameters())), "ids": mx.arange(3)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    (tmp_path / "link").symlink_to("model.safetensors")  # as in a hub's cache
    found = sizes.model_of_files([tmp_path / "link"], "adamw", bucket_size=MB)
    assert found.left_out == 12  # of integers
    assert {(e.path, e.shape, e.dtype) for e in found.entries} == {
        ("weight", (30, 20), "bfloat16"),
        ("bias", (30,), "bfloat16"),
    }


def header(text, length=None):
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def tensor(dtype, shape):
    """A file of one tensor of four bytes."""
    told = {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}
    return header({"a": told}) + bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        header(b"{}", length=2**63),
        header(b"{}", length=100),
        header(b"{}", length=0),
        header(b"[" * 100_000),
        header(b"\xff\xfe"),
        header([1, 2]),
        header({"a": 1}),
        header({"a": {"dtype": "F32", "data_offsets": [0, 0]}}),
        tensor("F32", [-1]),
        tensor("F32", [2**60]),
        tensor("F32", [2]),
        tensor(["F32"], [1]),
        tensor("F8_E4M3", [4]),
        tensor("F32", [1.5]),
        tensor("F32", [float("inf")]),
        tensor("F32", [True]),
        tensor("F32", "1"),
        tensor("F32", 7),
        header({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": {"a": 1}}}),
        header({}),
        tensor("I32", [1]),
    ],
)
def test_what_is_no_model(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=r"is no safetensors|no float tensor"):
        sizes.model_of_files([tmp_path / "x"], "adamw", bucket_size=MB)
