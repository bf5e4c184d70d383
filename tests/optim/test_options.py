"""Options of DistributedOptimizer that are refused, with what was found and wanted."""

import math
import warnings

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from tests.support.examples import assert_same_bits, distributed

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "rows"}, "shard is 'rows'"),
        ({"transport": "pigeon"}, "transport is 'pigeon'"),
        ({"max_norm": -1.0}, "max_norm is -1.0"),
        ({"max_norm": 0.0}, "above 0, or None not to clip"),
        ({"max_norm": math.nan}, "max_norm is nan"),
        ({"max_norm": "1"}, "max_norm is '1'"),
        ({"bucket_size": "1MB"}, "bucket_size is '1MB'"),
        ({"check_every": -1}, "check_every is -1"),
        ({"wire_dtype": mx.bfloat16}, 'needs transport="host"'),
        ({"transport": "host", "wire_dtype": mx.int8}, "wire_dtype is"),
        ({"transport": "host", "reduce_dtype": mx.bfloat16}, "adds in float32"),
        ({"reduce_dtype": mx.int32}, "reduce_dtype is"),
        ({"shard": True, "mean_dtype": mx.int8}, "mean_dtype is"),
        ({"mean_dtype": mx.bfloat16}, "share of the means: use shard=True"),
        (
            {"shard": True, "mean_dtype": mx.bfloat16, "transport": "native"},
            'use shard=True, over MPI with transport="auto"',
        ),
        (
            {"shard": True, "mean_dtype": mx.float16, "accumulate_sharded": True},
            "mean_dtype rounds them",
        ),
        (
            {"shard": True, "mean_dtype": mx.float16, "reproducible": True},
            "sends in float32, and mean_dtype is",
        ),
        ({"master_dtype": mx.bfloat16}, "master_dtype is"),
        ({"master_dtype": "16bit"}, 'must be mx.float32, "24bit" or None'),
        ({"loss_scale": 0}, "loss_scale is 0"),
        ({"loss_scale": "big"}, "loss_scale is 'big'"),
        ({"loss_scale": math.inf}, "loss_scale is inf"),
        ({"loss_scale": math.nan}, "loss_scale is nan"),
        ({"loss_scale": 1e-40}, "loss_scale is 1e-40"),
        ({"loss_scale": True}, "loss_scale is True"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0"),
        ({"ema_decay": -0.1}, r"ema_decay is -0\.1"),
        ({"ema_decay": math.nan}, "ema_decay is nan"),
        ({"sync_buffers": "all"}, "sync_buffers is 'all'"),
    ],
)
def test_option_out_of_range_is_refused(options, message, world):
    with pytest.raises(ValueError, match=message):
        distributed(world, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": np.float32(0.5)},
        {"accumulate": np.int64(2)},
        {"check_every": np.int32(5), "bucket_size": np.uint64(100)},
        {"loss_scale": np.float32(1024.0)},
        {"ema_decay": np.float64(0.5)},
        {"skip_nonfinite": np.bool_(True), "reproducible": np.bool_(False)},
    ],
    ids=str,
)
def test_option_as_a_number_of_numpy_is_that_of_python(options, world):
    trees = []
    for given in (options, {name: value.item() for name, value in options.items()}):
        optimizer = distributed(world, optim.Adam(0.1), **given)
        tree = {"w": mx.ones(7)}
        optimizer.init(tree)
        for step in range(2):
            tree = optimizer.apply_gradients({"w": mx.full((7,), step + 1.0)}, tree)
        trees.append(tree)
    assert_same_bits(*trees)


@pytest.mark.parametrize("option", [mx.float32, "24bit"], ids=str)
@pytest.mark.parametrize("dtypes", [(mx.float32,), (mx.float32, mx.float16)], ids=str)
def test_masters_of_no_parameter_warn_on_the_root(dtypes, option, world):
    optimizer = distributed(world, master_dtype=option)
    tree = {str(index): mx.ones(3, dtype) for index, dtype in enumerate(dtypes)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.init(tree)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == (world.is_root and len(dtypes) == 1)
    name = '"24bit"' if option == "24bit" else "mx.float32"
    assert all(text.startswith(f"master_dtype={name} has no") for text in texts)
    assert all(warning.filename == __file__ for warning in caught)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [(None, "the optimizer is None"), (optim.SGD, "the optimizer is <class")],
)
def test_optimizer_of_another_kind_is_refused(optimizer, message, world):
    with pytest.raises(ValueError, match=message):
        mlxdist.DistributedOptimizer(optimizer, world=world)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o.gather_state(), r"optimizer\.init\(model\) first"),
        (lambda o: o.describe(), r"optimizer\.init\(model\) first"),
        (lambda o: o.grad_norm, "max_norm"),
    ],
)
def test_call_before_init_is_refused_with_the_remedy(call, message, world):
    with pytest.raises(ValueError, match=message):
        call(distributed(world))


@pytest.mark.parametrize(
    "name", ["max_norm", "check_every", "loss_scale", "shard", "options"]
)
def test_options_assigned_after_construction_are_refused(name, world):
    optimizer = distributed(world, max_norm=1.0)
    with pytest.raises(AttributeError, match=f"{name} can't be changed"):
        setattr(optimizer, name, 2.0)
    assert optimizer.options.max_norm == 1.0
