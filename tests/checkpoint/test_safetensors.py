"""The safetensors format, as MLX reads and writes it."""

import mlx.core as mx
import pytest

from mlxdist.checkpoint import safetensors
from mlxdist.checkpoint.block_file import Reader, Writer
from mlxdist.checkpoint.durable import DamagedError
from mlxdist.checkpoint.safetensors import DTYPES, Tensor


def test_header_and_tensors_of_agree_with_mlx(tmp_path):
    arrays = {
        name: mx.ones((3, 2), getattr(mx, "bool_" if name == "bool" else name))
        for name in DTYPES
        if name != "float64"  # which MLX's safetensors files can't hold
    }
    tensors = [Tensor(n, n, (3, 2), a.nbytes) for n, a in arrays.items()]
    with Writer(tmp_path / "mlxdist.safetensors") as writer:
        writer.write(safetensors.header(tensors, {"made": "here"}))
        for array in arrays.values():
            writer.write(memoryview(mx.contiguous(array.reshape(-1))).cast("B"))
        writer.finish()
    loaded = mx.load(str(tmp_path / "mlxdist.safetensors"))
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert mx.array_equal(loaded[name], array)
    mx.save_safetensors(str(tmp_path / "mlx.safetensors"), arrays)
    for name in ("mlxdist.safetensors", "mlx.safetensors"):
        with Reader(tmp_path / name) as reader:
            listed = safetensors.tensors_of(reader)
        assert {tensor._replace(offset=0) for tensor in listed} == set(tensors)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{",
        *(
            len(text).to_bytes(8, "little") + text + bytes(8)
            for text in (
                b'{"a": 1}',
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}',
                b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
            )
        ),
    ],
)
def test_tensors_of_refuses_what_is_not_a_safetensors_file(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    refused = pytest.raises(DamagedError, match="is not a safetensors file")
    with Reader(tmp_path / "x") as reader, refused:
        safetensors.tensors_of(reader)
