"""Options of DistributedOptimizer that are refused, with what was found and wanted."""

import math

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.examples import distributed

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "rows"}, "shard is 'rows'"),
        ({"transport": "pigeon"}, "transport is 'pigeon'"),
        ({"max_norm": -1.0}, "max_norm is -1.0"),
        ({"max_norm": math.nan}, "max_norm is nan"),
        ({"max_norm": "1"}, "max_norm is '1'"),
        ({"bucket_size": "1MB"}, "bucket_size is '1MB'"),
        ({"check_every": -1}, "check_every is -1"),
        ({"wire_dtype": mx.bfloat16}, 'needs transport="host"'),
        ({"transport": "host", "wire_dtype": mx.int8}, "wire_dtype is"),
        ({"transport": "host", "reduce_dtype": mx.bfloat16}, "adds in float32"),
        ({"reduce_dtype": mx.int32}, "reduce_dtype is"),
        ({"master_dtype": mx.bfloat16}, "master_dtype is"),
        ({"loss_scale": 0}, "loss_scale is 0"),
        ({"loss_scale": "big"}, "loss_scale is 'big'"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0"),
        ({"sync_buffers": "all"}, "sync_buffers is 'all'"),
    ],
)
def test_option_out_of_range_is_refused(options, message, world):
    with pytest.raises(ValueError, match=message):
        distributed(world, **options)


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
