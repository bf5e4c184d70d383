"""Random trees, dtypes, shapes, buckets and weights.

Sharded is replicated is one process. The examples are the same on all ranks, and all
ranks learn of a failure on one.
"""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from tests.support.examples import (
    SHARDS,
    TRANSPORTS,
    bits,
    cast_like,
    distributed,
    gradients,
    mean_of,
    to_float32,
)

pytestmark = pytest.mark.mpi

EXAMPLES = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
INNER = {
    "AdamW": lambda: optim.AdamW(1e-2),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9, weight_decay=0.1),
    "Lion": lambda: optim.Lion(1e-2),
    "Adagrad": lambda: optim.Adagrad(1e-2),
}
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
DTYPES = st.sampled_from([mx.float32, mx.bfloat16, mx.float16])
LEAVES = st.tuples(SHAPES, DTYPES)
NAMES = st.text("abcxyz", min_size=1, max_size=4)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3)
            | st.dictionaries(NAMES, inner, min_size=1, max_size=3)
        ),
        max_leaves=6,
    ),
    min_size=1,
    max_size=4,
)
WEIGHTS = st.lists(st.integers(0, 6), min_size=12, max_size=12).filter(
    lambda weights: weights[0] > 0
)


def draw_tree(spec, seed=0):
    """Return a tree of normally distributed arrays with given shapes and dtypes."""
    if isinstance(spec, dict):
        return {k: draw_tree(v, seed + 7 * i) for i, (k, v) in enumerate(spec.items())}
    if isinstance(spec, list):
        return [draw_tree(v, seed + 11 * i) for i, v in enumerate(spec)]
    shape, dtype = spec
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def differing_paths(one, other):
    others = dict(tree_flatten(other))
    return [
        path
        for path, array in tree_flatten(one)
        if array.dtype != others[path].dtype
        or array.shape != others[path].shape
        or (bits(array) != bits(others[path])).any()
    ]


def assert_no_rank_differs(world, results, expected):
    """Assert that all results have the same bits, on all ranks or on none."""
    differing = [differing_paths(result, expected) for result in results]
    assert not world.mean(float(any(differing))), f"rank {world.rank}: {differing}"


@EXAMPLES
@given(
    spec=TREES,
    name=st.sampled_from(sorted(INNER)),
    bucket_size=st.integers(1, 400),
    micro_batches=st.integers(1, 3),
    weights=WEIGHTS,
    masters=st.booleans(),
    transport=st.sampled_from(TRANSPORTS),
)
def test_optimizer_on_any_tree_gives_the_bits_of_one_process(
    world, spec, name, bucket_size, micro_batches, weights, masters, transport
):
    start = draw_tree(spec)
    numbers = range(world.size * micro_batches)
    weights = [float(weights[n % len(weights)]) for n in numbers]
    results = []
    for shard in SHARDS:
        optimizer = distributed(
            world,
            INNER[name](),
            shard=shard,
            transport=transport,
            bucket_size=bucket_size,
            accumulate=micro_batches,
            master_dtype=mx.float32 if masters else None,
        )
        tree = start
        optimizer.init(tree)
        for step in range(2):
            for micro_batch in range(micro_batches):
                n = world.rank * micro_batches + micro_batch
                grads = gradients(tree, 10 * step + n, 1)
                tree = optimizer.apply_gradients(grads, tree, weight=weights[n])
        results.append(tree)
    reference = INNER[name]()
    tree = to_float32(start) if masters else start
    reference.init(tree)
    for step in range(2):
        every = [gradients(start, 10 * step + n, 1) for n in numbers]
        if masters:
            every = [to_float32(grads) for grads in every]
        tree = reference.apply_gradients(mean_of(every, weights), tree)
    assert_no_rank_differs(world, results, cast_like(tree, start))


@EXAMPLES
@given(spec=TREES, seed=st.integers(0, 99))
def test_state_of_any_tree_survives_gather_and_load(world, spec, seed):
    start = draw_tree(spec)

    def build(shard):
        optimizer = distributed(
            world,
            shard=shard,
            master_dtype=mx.float32,
            ema_decay=0.5,
            bucket_size=64,
        )
        optimizer.init(start)
        return optimizer

    states = []
    for index, shard in enumerate(SHARDS):
        optimizer, other = build(shard), build(SHARDS[index - 1])
        optimizer.apply_gradients(gradients(start, seed, 0), start)
        other.load_state(optimizer.gather_state())
        states += [optimizer.gather_state(), other.gather_state()]
    assert_no_rank_differs(world, states, states[0])
