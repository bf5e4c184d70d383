"""Steps with state in 8 bits: as one process would take them, however state is cut."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxdist.arrays import device
from mlxdist.arrays.blockwise import (
    numbers_of_blocks,
    phases_at,
    quantize,
    widen,
    zeros,
)
from mlxdist.optim.grad_norm import NonFiniteError
from mlxdist.optim.quantized_state import MOMENTS
from tests.support.compiled import assert_as_eager
from tests.support.examples import (
    CASES,
    assert_same_bits,
    distributed,
    gradients,
    make,
)

pytestmark = pytest.mark.mpi
# No number of ranks divides them all. "norm", "small" and "embed" keep float32 state.
SHAPES = {
    "a": (64, 65),
    "b": (40, 128),
    "c": (3, 31, 64),
    "embed": (64, 64),
    "norm": (70,),
    "small": (63,),
}
QUANTIZED = ("a", "b", "c")
STEPS = range(3)


def parameters(dtype=mx.float32, scale=1):
    numbers = np.random.default_rng(1)
    return {
        name: mx.array(numbers.normal(size=(shape[0] * scale, *shape[1:]))).astype(
            dtype
        )
        for name, shape in SHAPES.items()
    }


def stepped_by_mlx(inner, tree):
    """Step each tensor with MLX, its moments quantized between the steps."""
    moments = dict(MOMENTS[type(inner)])
    states = {name: {} for name in tree}
    for name, state in states.items():
        inner.init_single(tree[name].astype(mx.float32), state)
        if name in QUANTIZED:
            state.update({k: zeros(state[k].size, kind) for k, kind in moments.items()})
    inner.init({})
    for step in STEPS:
        grads = gradients(tree, step, 0)
        for name, schedule in inner._schedulers.items():
            inner.state[name] = schedule(inner.step)
        inner.state["step"] = inner.step + 1
        for name, state in states.items():
            whole = name not in QUANTIZED
            wide = dict(state)
            if not whole:
                shape = tree[name].shape
                wide.update({k: widen(*state[k]).reshape(shape) for k in moments})
            dtype = tree[name].dtype if whole else mx.float32
            new = inner.apply_single(
                grads[name].astype(dtype), tree[name].astype(dtype), wide
            )
            for number, (key, kind) in enumerate(moments.items()):
                if not whole:
                    blocks = numbers_of_blocks([(0, new.size)])
                    phases = phases_at(inner.step, blocks, number)
                    wide[key] = quantize(wide[key], kind, phases)
            state.update(wide)
            tree = {**tree, name: new.astype(tree[name].dtype)}
    return tree, states


def stepped(world, inner, tree, **options):
    """Step on the same gradients on all ranks, whose mean is exact."""
    optimizer = distributed(
        world, inner, state_dtype="int8", **{"bucket_size": 9000, **options}
    )
    optimizer.init(tree)
    for step in STEPS:
        tree = optimizer.apply_gradients(gradients(tree, step, 0), tree)
    return tree, optimizer


@pytest.mark.parametrize("name", sorted(kind.__name__ for kind in MOMENTS))
def test_steps_in_8_bits_are_those_of_mlx_with_quantized_moments(name, world):
    wanted, states = stepped_by_mlx(make(name), parameters())
    for shard, transport in CASES:
        tree, optimizer = stepped(
            world, make(name), parameters(), shard=shard, transport=transport
        )
        assert_same_bits(tree, wanted)
        if not shard:
            for path in QUANTIZED:
                for key, blocks in optimizer.state[path].items():
                    assert_same_bits(blocks, states[path][key]._asdict())


@pytest.mark.parametrize("bucket_size", [1, 2**20])
def test_steps_in_8_bits_do_not_depend_on_buckets(bucket_size, world):
    wanted, _ = stepped_by_mlx(make("AdamW"), parameters())
    for shard, transport in CASES:
        tree, _ = stepped(
            world,
            make("AdamW"),
            parameters(),
            shard=shard,
            transport=transport,
            bucket_size=bucket_size,
        )
        assert_same_bits(tree, wanted)


@pytest.mark.parametrize("part_size", [2**12, 2**18])
def test_large_model_in_8_bits_is_stepped_as_by_mlx(part_size, world, monkeypatch):
    """Its update is compiled; tensors of more than two parts are stepped in parts."""
    monkeypatch.setattr(device, "part_size", lambda: part_size)
    wanted, _ = stepped_by_mlx(make("AdamW"), parameters(scale=16))
    for shard in (False, "elements", "tensors"):
        tree, optimizer = stepped(
            world, make("AdamW"), parameters(scale=16), shard=shard
        )
        assert optimizer.pipelines.eager.local.is_compiled
        assert_as_eager(tree, wanted)


@pytest.mark.parametrize(
    "options",
    [{}, {"master_dtype": mx.float32}, {"ema_decay": 0.5}, {"max_norm": 0.1}],
    ids=str,
)
def test_16_bit_parameters_with_state_in_8_bits_are_the_same_however_cut(
    options, world
):
    """Their moments are stepped in float32."""
    first = None
    for shard, transport in CASES:
        tree, _ = stepped(
            world,
            make("AdamW"),
            parameters(mx.bfloat16),
            shard=shard,
            transport=transport,
            reproducible=True,
            **options,
        )
        first = first or tree
        assert_same_bits(tree, first)
    if not options:
        wanted, _ = stepped_by_mlx(make("AdamW"), parameters(mx.bfloat16))
        for path in QUANTIZED:
            assert_same_bits(first[path], wanted[path])


def test_16_bit_parameters_with_state_in_8_bits_are_widened_before_they_decay(world):
    """SGD multiplies them by a Python number: in their own dtype, if nobody does."""
    tree = parameters(mx.bfloat16)
    inner, reference = (optim.SGD(0.5, 0.9, weight_decay=0.3) for _ in range(2))
    first, _ = stepped(world, inner, tree)
    wanted, _ = stepped_by_mlx(reference, tree)
    for path in QUANTIZED:
        assert_same_bits(first[path], wanted[path])


def test_state_in_8_bits_is_2_bytes_and_an_eighth_an_element(world):
    tree = {"a": mx.zeros((64, 64 * world.size))}
    optimizer = distributed(world, shard=True, state_dtype="int8")
    optimizer.init(tree)
    arrays = [array for _, array in tree_flatten(optimizer.state["a"])]
    assert sum(array.nbytes for array in arrays) == 64 * 64 * 2 * (1 + 4 / 64)


def test_error_in_a_step_leaves_state_in_8_bits_as_it_was(world):
    optimizer = distributed(world, shard=True, state_dtype="int8", max_norm=1.0)
    tree = parameters()
    optimizer.init(tree)
    tree = optimizer.apply_gradients(gradients(tree, 0, 0), tree)
    before = dict(tree_flatten(optimizer.state))
    bad = {**gradients(tree, 1, 0), "a": mx.full(SHAPES["a"], mx.nan)}
    with pytest.raises(NonFiniteError, match="step 2 refused"):
        optimizer.apply_gradients(bad, tree)
    assert_same_bits(dict(tree_flatten(optimizer.state)), before)
