"""Random trees, dtypes, shapes, buckets, weights: sharded is replicated is one process.

The examples are the same on all ranks, and all ranks hear of a failure on one.
"""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

import mlxdist
from tests.support.examples import bits, gradients, mean_of

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
).filter(lambda tree: not {"step"} & tree.keys())
WEIGHTS = st.lists(st.integers(0, 6), min_size=12, max_size=12).filter(
    lambda weights: weights[0] > 0
)


def drawn(spec, seed=0):
    """A tree of arrays with the shapes and dtypes of a random one."""
    if isinstance(spec, dict):
        return {k: drawn(v, seed + 7 * i) for i, (k, v) in enumerate(spec.items())}
    if isinstance(spec, list):
        return [drawn(v, seed + 11 * i) for i, v in enumerate(spec)]
    shape, dtype = spec
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def wide(tree):
    return tree_map(lambda leaf: leaf.astype(mx.float32), tree)


def wrong(one, other):
    """Paths whose bits differ."""
    others = dict(tree_flatten(other))
    return [
        path
        for path, array in tree_flatten(one)
        if array.dtype != others[path].dtype
        or array.shape != others[path].shape
        or (bits(array) != bits(others[path])).any()
    ]


@EXAMPLES
@given(
    spec=TREES,
    name=st.sampled_from(sorted(INNER)),
    bucket_size=st.integers(1, 400),
    micro_batches=st.integers(1, 3),
    weights=WEIGHTS,
    masters=st.booleans(),
    transport=st.sampled_from(["host", "native"]),
)
def test_all_ways_give_the_same_bits(
    world, spec, name, bucket_size, micro_batches, weights, masters, transport
):
    start = drawn(spec)
    numbers = range(world.size * micro_batches)
    weights = [float(weights[n % len(weights)]) for n in numbers]
    found = []
    for shard in (False, "elements", "tensors"):
        ours = mlxdist.DistributedOptimizer(
            INNER[name](),
            shard=shard,
            transport=transport,
            bucket_size=bucket_size,
            accumulate=micro_batches,
            master_dtype=mx.float32 if masters else None,
            world=world,
        )
        own = start
        ours.init(own)
        for step in range(2):
            for one in range(micro_batches):
                n = world.rank * micro_batches + one
                grads = gradients(own, 10 * step + n, 1)
                own = ours.apply_gradients(grads, own, weight=weights[n])
        found.append(own)
    plain = INNER[name]()
    own = wide(start) if masters else start
    plain.init(own)
    for step in range(2):
        every = [gradients(start, 10 * step + n, 1) for n in numbers]
        if masters:
            every = [wide(one) for one in every]
        own = plain.apply_gradients(mean_of(every, weights), own)
    own = tree_map(lambda leaf, like: leaf.astype(like.dtype), own, start)
    differ = [wrong(one, own) for one in found]
    told = world.mean(float(any(differ)))
    assert not told, f"rank {world.rank}: {differ}"


@EXAMPLES
@given(spec=TREES, seed=st.integers(0, 99))
def test_any_state_survives_gather_and_load(world, spec, seed):
    start = drawn(spec)
    ways = [False, "elements", "tensors"]
    states = []
    for index, shard in enumerate(ways):
        options = {"master_dtype": mx.float32, "ema_decay": 0.5, "bucket_size": 64}
        ours = mlxdist.DistributedOptimizer(
            optim.AdamW(1e-2), shard=shard, world=world, **options
        )
        ours.init(start)
        ours.apply_gradients(gradients(start, seed, 0), start)
        other = mlxdist.DistributedOptimizer(
            optim.AdamW(1e-2), shard=ways[index - 1], world=world, **options
        )
        other.init(start)
        other.load_state(ours.gather_state())
        states += [ours.gather_state(), other.gather_state()]
    differ = [wrong(one, states[0]) for one in states]
    told = world.mean(float(any(differ)))
    assert not told, f"rank {world.rank}: {differ}"
