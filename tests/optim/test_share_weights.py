"""init(model): the weights that differ are sent, and no others."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxdist import MismatchError
from tests.support.examples import assert_same_bits, distributed

pytestmark = pytest.mark.mpi

BASE = 2**20  # bytes


class Adapted(nn.Module):
    """A frozen base with a buffer of flags, and a small trainable adapter."""

    def __init__(self):
        super().__init__()
        self.base = mx.arange(BASE // 4, dtype=mx.float32)
        self.flags = mx.array([True, False, True])
        self.adapter = mx.zeros((4, 4))
        self.freeze(keys=["base", "flags"], recurse=False)


def sent_by_init(world, model):
    mx.eval(model.parameters())
    before = world.control.traffic.bytes_sent
    distributed(world, shard=True).init(model)
    return world.control.traffic.bytes_sent - before


def test_equal_weights_are_not_sent(world):
    assert sent_by_init(world, Adapted()) < 1000


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("index", [0, 5000, -1])
def test_frozen_weight_with_one_other_bit_becomes_that_of_rank_0(index, world):
    model = Adapted()
    if world.rank == world.size - 1:
        model.base[index] += 1
    sent = sent_by_init(world, model)
    assert_same_bits(model.parameters(), Adapted().parameters())
    if world.is_root:
        assert BASE <= sent < BASE + 1000
    model.adapter = mx.full((4, 4), float(world.rank))
    assert sent_by_init(world, model) < 1000
    assert_same_bits(model.parameters(), Adapted().parameters())


@pytest.mark.mpi(min_size=2)
def test_weights_whose_numbers_are_equal_and_bits_are_not_are_sent(world):
    model = Adapted()
    model.base = mx.array([0.0, mx.nan])
    if not world.is_root:
        model.base = mx.array([-0.0, mx.nan])
        model.flags = mx.array([True, True, True])
    distributed(world).init(model)
    assert world.identical(model)


@pytest.mark.mpi(min_size=2)
def test_frozen_weights_of_other_shapes_or_dtypes_are_refused(world):
    model = Adapted()
    if world.rank == 1:
        model.base = model.base.astype(mx.float16)
    with pytest.raises(MismatchError, match=r"base mlx.core.float16"):
        distributed(world).init(model)
