"""layout/state_blocks: which parameters have 8-bit state."""

import pytest

from mlxdist.layout.state_blocks import is_quantized
from tests.support.plans import make_entry


@pytest.mark.parametrize(
    ("path", "shape", "dtype", "expected"),
    [
        ("layers.0.wq.weight", (64, 64), "bfloat16", True),
        ("layers.0.wq.weight", (8, 8, 64), "float32", True),
        ("layers.0.wq.weight", (64, 63), "float32", False),  # fewer than 4096
        ("layers.0.wq.weight", (65, 65), "float32", False),  # no multiple of 64
        ("layers.0.norm.weight", (4096,), "float32", False),
        ("layers.0.wq.weight", (64, 64), "int32", False),
        ("embed.weight", (64, 64), "float32", False),
        ("model.embed_tokens.weight", (64, 64), "float32", False),
    ],
)
def test_is_quantized_follows_size_shape_dtype_and_path(path, shape, dtype, expected):
    entry = make_entry(path, shape, dtype)
    assert is_quantized(entry, ("embed",)) is expected
    assert is_quantized(entry) is (expected or "embed" in path)
