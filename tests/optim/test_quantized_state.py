"""Which parameters have their state in 8 bits, and of which optimizers."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from mlxdist.layout.entries import Entry
from mlxdist.layout.paths import KeyPath
from mlxdist.optim.inner_optimizer import ELEMENTWISE
from mlxdist.optim.quantized_state import MOMENTS, QuantizedState
from tests.support.examples import distributed

INT8 = QuantizedState("int8", ("embed", "head.weight"))


def _entry(dotted="layers.0.weight", shape=(64, 64), dtype="float32"):
    return Entry(KeyPath(dotted.split(".")), shape, dtype)


@pytest.mark.parametrize(
    "entry",
    [_entry(), _entry(shape=(2, 3, 1024)), _entry(dtype="bfloat16"), _entry("heads.x")],
    ids=str,
)
def test_large_matrix_is_in_8_bits(entry):
    assert INT8.applies_to(entry)
    assert not QuantizedState().applies_to(entry)


@pytest.mark.parametrize(
    "entry",
    [
        _entry(shape=(4096,)),
        _entry(shape=(63, 64)),
        _entry(shape=(4097, 2)),
        _entry(dtype="uint32"),
        _entry("embed_tokens.weight"),
        _entry("model.embed.weight"),
        _entry("head.weight"),
    ],
    ids=str,
)
def test_vector_small_tensor_and_named_one_keep_float32_state(entry):
    assert not INT8.applies_to(entry)


def test_every_elementwise_optimizer_of_mlx_has_known_moments():
    assert MOMENTS.keys() == ELEMENTWISE
    for kind, kinds in MOMENTS.items():
        state = {}
        kind(learning_rate=0.1).init_single(mx.ones((2, 2)), state)
        assert state.keys() == dict(kinds).keys(), kind


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dtype": "int7"}, "state_dtype is 'int7'"),
        ({"state_dtype": mx.int8}, "state_dtype is mlx.core.int8"),
        ({"float32_state": ["head"]}, "float32_state is"),
        ({"float32_state": ("",)}, "float32_state is"),
    ],
)
def test_invalid_option_is_refused(options, message, world):
    with pytest.raises(ValueError, match=message):
        distributed(world, **options)


class _Mine(optim.Adam):
    pass


def _changed(learning_rate):
    """Return an Adam with a method of its own, whose moments may be others."""
    optimizer = optim.Adam(learning_rate)
    optimizer.apply_single = lambda gradient, parameter, state: parameter
    return optimizer


@pytest.mark.mpi
@pytest.mark.parametrize("kind", [optim.Muon, optim.Adafactor, _Mine, _changed])
def test_optimizer_of_unknown_moments_is_refused(kind, world):
    inner = kind(learning_rate=0.1)
    name = type(inner).__name__
    with pytest.raises(ValueError, match=f"{name}; leave state_dtype out"):
        distributed(world, inner, state_dtype="int8")
