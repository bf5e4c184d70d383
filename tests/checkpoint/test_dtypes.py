"""Arrays of every dtype that MLX has: saved, verified and loaded."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from mlxdist import load_checkpoint, save_checkpoint
from mlxdist.arrays.dtypes import DTYPES, dtype_name, dtype_of
from mlxdist.arrays.numpy_view import uninitialized
from mlxdist.checkpoint import mlx_files, safetensors
from mlxdist.checkpoint.verify import list_checkpoints, verify
from mlxdist.layout.entries import ITEM_SIZES
from tests.support.examples import distributed, each_shard
from tests.support.trees import assert_same_trees

MLX_DTYPES = [d for d in vars(mx).values() if isinstance(d, mx.Dtype)]
HAS_FLOAT64 = mx.default_device() == mx.cpu


def test_tables_have_every_dtype_of_mlx():
    assert set(DTYPES.values()) == set(MLX_DTYPES)
    assert {name: dtype.size for name, dtype in DTYPES.items()} == ITEM_SIZES
    assert safetensors.DTYPES.keys() == DTYPES.keys()
    for dtype in MLX_DTYPES:
        assert dtype_of(dtype_name(dtype)) == dtype


@pytest.mark.parametrize("name", DTYPES)
def test_uninitialized_arrays_of_every_dtype_are_writable(name):
    array = uninitialized(3 * 2**20, dtype_of(name))
    assert array.dtype == dtype_of(name)
    assert array.size == 3 * 2**20


def array(dtype, *shape):
    """Return numbers that every dtype has, and that differ between its elements."""
    values = mx.arange(mx.zeros(shape).size).reshape(shape) % 2
    if mx.issubdtype(dtype, mx.complexfloating):
        return (values + 2j * values).astype(dtype)
    return values.astype(dtype)


def dtypes():
    return {n: d for n, d in DTYPES.items() if n != "float64" or HAS_FLOAT64}


class Every(optim.Optimizer):
    """Has state of every dtype: one array in all, and two of each parameter."""

    elementwise = True

    def __init__(self, make):
        super().__init__()
        self._make = make
        for name, dtype in dtypes().items():
            self.state[f"shared_{name}"] = make(dtype)

    def init_single(self, parameter, state):
        for name, dtype in dtypes().items():
            state[name] = self._make(dtype, *parameter.shape)
            state.setdefault("other", {})[name] = self._make(dtype, 2, 3)


class Model(nn.Module):
    """Trains each dtype that can be trained; frozen weights and buffers of all."""

    def __init__(self, make):
        super().__init__()
        floats = {n: d for n, d in dtypes().items() if mx.issubdtype(d, mx.floating)}
        self.trained = {n: make(d, 5, 3) for n, d in floats.items()}
        self.frozen = nn.Module()
        self.frozen.all = {n: make(d, 3) for n, d in dtypes().items()}
        self.frozen.scalars = [make(d) for d in dtypes().values()]
        self.frozen.freeze()
        self.buffers = {n: make(d, 2, 2) for n, d in dtypes().items()}
        self.empty = {n: make(d, 0, 2) for n, d in dtypes().items()}
        self.freeze(recurse=False)
        self._no_grad -= {f"trained.{name}" for name in floats}


def zeros(dtype, *shape):
    return mx.zeros(shape, dtype)


def build(world, make, shard):
    model = Model(make)
    optimizer = distributed(world, Every(make), shard=shard, bucket_size=16)
    optimizer.init(model)
    assert optimizer.describe().plan.entries
    return model, optimizer


@pytest.mark.mpi
@each_shard
def test_every_dtype_is_saved_verified_and_loaded(shard, world, shared_folder):
    model, optimizer = build(world, array, shard)
    extra = {n: [array(d, 3), array(d)] for n, d in dtypes().items()}
    extra["numpy"] = {n: np.arange(3).astype(n) for n in ("bool", "int8", "complex64")}
    save_checkpoint(shared_folder / "saves", 1, model, optimizer, extra)
    (info,) = list_checkpoints(shared_folder / "saves")
    assert not list(verify(shared_folder / "saves", info, lambda nbytes: None))

    restored, resumed = build(world, zeros, not shard)
    loaded = load_checkpoint(shared_folder / "saves", restored, resumed)
    assert_same_trees(restored.parameters(), model.parameters())
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())
    numpy = loaded.extra.pop("numpy")
    assert_same_trees(loaded.extra, {n: extra[n] for n in dtypes()})
    assert {n: a.tolist() for n, a in numpy.items()} == {
        n: a.tolist() for n, a in extra["numpy"].items()
    }


@pytest.mark.mpi
def test_every_dtype_but_float64_is_consolidated_and_loaded(
    world, shared_folder, monkeypatch
):
    monkeypatch.delitem(DTYPES, "float64")
    model, optimizer = build(world, array, True)
    save_checkpoint(shared_folder / "saves", 1, model, optimizer)
    if world.is_root:
        (info,) = list_checkpoints(shared_folder / "saves")
        target = shared_folder / "plain"
        mlx_files.consolidate(shared_folder / "saves", info.save, target, print)
        twin = Model(zeros).load_weights(str(target / "model.safetensors"))
        assert_same_trees(twin.parameters(), model.parameters())
    world.barrier()
    restored, resumed = build(world, zeros, "tensors")
    load_checkpoint(shared_folder / "plain", restored, resumed)
    assert_same_trees(restored.parameters(), model.parameters())
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())
