"""mean_dtype: this rank's share of the means is rounded once, before it waits."""

import mlx.core as mx
import pytest

from tests.support.examples import assert_same_bits, distributed, mean_of

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("compiled_always")]

OPTIONS = {"shard": True, "master_dtype": mx.float32, "bucket_size": 64}


def gradients_of(world, dtype):
    """Return the gradients of all ranks."""
    keys = [mx.random.key(rank) for rank in range(world.size)]
    shapes = {"a": (31, 7), "b": (5,)}
    return [
        {n: mx.random.normal(s, key=key).astype(dtype) for n, s in shapes.items()}
        for key in keys
    ]


def stepped(world, gradients, dtype, **options):
    optimizer = distributed(world, **OPTIONS | options)
    tree = {name: mx.ones(g.shape, dtype) for name, g in gradients.items()}
    optimizer.init(tree)
    tree = optimizer.apply_gradients(gradients, tree)
    return [tree, optimizer.gather_state()], optimizer


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_mean_dtype_steps_masters_with_the_rounded_mean(dtype, world):
    gradients = gradients_of(world, dtype)
    rounded, _ = stepped(world, gradients[world.rank], dtype, mean_dtype=dtype)
    mean = {n: mean_of([g[n] for g in gradients]).astype(dtype) for n in gradients[0]}
    expected, _ = stepped(world, mean, dtype)
    assert_same_bits(rounded, expected)


def test_mean_dtype_leaves_the_norm_as_it_is(world):
    gradients = gradients_of(world, mx.bfloat16)[world.rank]
    norms = [
        stepped(world, gradients, mx.bfloat16, max_norm=1.0, mean_dtype=mean)[
            1
        ].grad_norm.item()
        for mean in (None, mx.bfloat16)
    ]
    assert norms[0] == norms[1]


@pytest.mark.parametrize(
    ("options", "item"),
    [
        ({}, 4),
        ({"mean_dtype": mx.bfloat16}, 2),
        ({"master_dtype": None}, 2),
        ({"master_dtype": None, "state_dtype": "int8"}, 4),
        ({"master_dtype": None, "transport": "native"}, 4),
    ],
)
@pytest.mark.mpi(min_size=2)
def test_describe_counts_means_in_the_dtype_that_they_wait_in(options, item, world):
    gradients = gradients_of(world, mx.bfloat16)[world.rank]
    _, optimizer = stepped(world, gradients, mx.bfloat16, **options)
    described = optimizer.describe()
    elements = sum(
        stop - start for start, stop in described.plan.shard(world.rank).values()
    )
    assert described.memory["minimize"]["mean gradients"] == item * elements
