"""A step on an accelerator: the host never waits for work that nobody has queued.

While it does, the accelerator has nothing to do. MLX is made to say that it computes on
an accelerator; what it computes with is a CPU.
"""

import sys

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

import mlxdist
from tests.support.examples import assert_same_bits, distributed
from tests.support.lazy_arrays import is_lazy

pytestmark = pytest.mark.mpi

BUCKETS = 170
MODES = [
    {"shard": "elements", "transport": "host"},
    {"shard": "tensors", "transport": "host"},
    {"shard": False, "transport": "host"},
    {"shard": "elements", "transport": "native"},
    {"shard": "tensors", "transport": "native"},
    {"shard": False, "transport": "native"},
]
modes = pytest.mark.parametrize(
    "options", MODES, ids=lambda mode: "-".join(map(str, mode.values()))
)


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)


@pytest.fixture
def waits(monkeypatch):
    """Return a list that gets a line for each wait with nothing queued behind it."""
    lines, newest = [], []
    evaluate, queue = mx.eval, mx.async_eval

    def counted(*arrays):
        caller = sys._getframe(1).f_code
        flat = [array for _, array in tree_flatten(list(arrays))]
        is_newest = any(array is last for array in flat for last in newest)
        # Not memory that the CPU allocates for itself.
        if caller.co_name != "uninitialized" and (is_newest or is_lazy(arrays)):
            lines.append(f"{caller.co_filename}: {caller.co_name}")
        evaluate(*arrays)

    def noted(*arrays):
        if sys._getframe(1).f_code.co_name == "start_evaluation":  # no collective
            newest[:] = [array for _, array in tree_flatten(list(arrays))]
        queue(*arrays)

    monkeypatch.setattr(mx, "eval", counted)
    monkeypatch.setattr(mx, "async_eval", noted)
    return lines


def lazy_gradients(tree, rank):
    return {
        path: mx.exp(mx.zeros_like(leaf)) * (rank + 1) for path, leaf in tree.items()
    }


def trained(world, buckets=BUCKETS, **options):
    """Return an optimizer that has taken steps, and the parameters."""
    optimizer = distributed(world, optim.AdamW(0.1), bucket_size=8, **options)
    tree = {f"p{i:03}": mx.full((12,), float(i)) for i in range(buckets)}
    optimizer.init(tree)
    for _ in range(2):
        tree = optimizer.apply_gradients(lazy_gradients(tree, world.rank), tree)
        mx.eval(tree)
    return optimizer, tree


@modes
@pytest.mark.usefixtures("accelerator")
def test_step_of_many_buckets_waits_for_few_that_are_not_queued(options, waits, world):
    optimizer, tree = trained(world, **options)
    grads = lazy_gradients(tree, world.rank)
    waits.clear()
    optimizer.apply_gradients(grads, tree)
    assert len(waits) <= 4
    # The next step compares these. Queued later, they were behind its forward pass.
    assert not is_lazy([optimizer.state["step"], optimizer.state["learning_rate"]])


@pytest.mark.usefixtures("accelerator")
def test_average_gradients_waits_for_the_last_bucket_alone(waits, world):
    grads = lazy_gradients(
        {f"p{i:03}": mx.ones(12) for i in range(BUCKETS)}, world.rank
    )
    waits.clear()
    mlxdist.average_gradients(grads, world=world, bucket_size=8)
    assert len(waits) <= 1  # for the last bucket


@modes
def test_step_on_an_accelerator_has_the_bits_of_one_on_a_cpu(
    options, monkeypatch, world
):
    _, expected = trained(world, buckets=20, **options)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert_same_bits(trained(world, buckets=20, **options)[1], expected)
