"""planner/model_files: the parameters in safetensors files, and damaged files."""

import json
import struct

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlxdist.planner import model_of_files
from tests.support.plans import MB


def test_model_of_files_has_float_tensors_behind_a_symlink(tmp_path):
    layer = nn.Linear(20, 30)
    layer.set_dtype(mx.bfloat16)
    arrays = {**dict(tree_flatten(layer.parameters())), "ids": mx.arange(3)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    (tmp_path / "link").symlink_to("model.safetensors")  # as in a hub's cache
    model = model_of_files([tmp_path / "link"], "adamw", bucket_size=MB)
    assert model.frozen_bytes == 12  # of integers
    assert {(str(e.path), e.shape, e.dtype) for e in model.entries} == {
        ("weight", (30, 20), "bfloat16"),
        ("bias", (30,), "bfloat16"),
    }


def header(text, length=None):
    """Return the bytes of a safetensors header, from text or from JSON."""
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def tensor(dtype, shape):
    """Return a file of one tensor of four bytes."""
    tensors = {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}
    return header({"a": tensors}) + bytes(4)


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
def test_model_of_files_without_float_tensors_or_damaged_is_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=r"is not a safetensors|no float tensor"):
        model_of_files([tmp_path / "x"], "adamw", bucket_size=MB)
