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
    writer = Writer(tmp_path / "optimizer")
    writer.write(safetensors.header(tensors, {"made": "here"}))
    for array in arrays.values():
        writer.write(memoryview(mx.contiguous(array.reshape(-1))).cast("B"))
    writer.finish()
    writer.close()
    found = mx.load(str(tmp_path / "optimizer"), format="safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array)
    mx.save_safetensors(str(tmp_path / "mlx.safetensors"), arrays)
    for name in ("optimizer", "mlx.safetensors"):
        reader = Reader(tmp_path / name)
        listed = {
            t.name: (t.dtype, t.shape, t.nbytes) for t in safetensors.tensors_of(reader)
        }
        assert listed == {t.name: (t.dtype, t.shape, t.nbytes) for t in tensors}
        reader.close()


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
    reader = Reader(tmp_path / "x")
    with pytest.raises(DamagedError, match="is not a safetensors file"):
        safetensors.tensors_of(reader)
    reader.close()
