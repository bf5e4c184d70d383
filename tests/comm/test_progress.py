"""Exchanging while the backward pass runs, as between hosts and on accelerators."""

import time

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.comm import Recorder
from mlxdist.comm.exchange import Exchange
from mlxdist.world import World
from tests.support.examples import assert_as_eager

pytestmark = pytest.mark.mpi


@pytest.fixture
def apart(world):
    """The world as if each rank were on a host of its own."""
    return World(world.group, "mpi", world.duplicate(), Recorder(), overlaps=True)


def slow(seconds):
    """An array that takes about so long to compute."""
    matrix = mx.random.normal((400, 400))
    mx.eval(matrix)
    began = time.perf_counter()
    mx.eval(matrix @ matrix)
    rounds = max(2, round(seconds / (time.perf_counter() - began)))
    for _ in range(rounds):
        matrix = mx.tanh(matrix @ matrix)
    return matrix


def tree(seed):
    key = mx.random.key(seed)
    shapes = {"a": (400, 400), "b": (17,), "c": (900, 300), "d": (3, 3)}
    return {
        name: mx.random.randint(-8, 8, shape, key=key).astype(mx.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("shard", [False, "elements", "tensors"])
def test_the_same_bits_with_lazy_gradients(shard, apart):
    ours = mlxdist.DistributedOptimizer(
        optim.AdamW(1e-2), world=apart, shard=shard, transport="host"
    )
    plain = optim.AdamW(1e-2)
    own = twin = tree(0)
    ours.init(own)
    plain.init(twin)
    for step in range(1, 4):
        lazy = {name: leaf * 1.0 for name, leaf in tree(step).items()}
        own = ours.apply_gradients(lazy, own)
        twin = plain.apply_gradients(tree(step), twin)
    assert_as_eager(own, twin)


def test_the_first_bucket_travels_before_the_last_gradient_is_there(apart, monkeypatch):
    if apart.size == 1:
        pytest.skip("nothing travels")
    posted = []
    post = {cls: cls.post for cls in Exchange.__subclasses__()}
    for cls, original in post.items():

        def noted(self, start, stop, original=original):
            posted.append(time.perf_counter())
            return original(self, start, stop)

        monkeypatch.setattr(cls, "post", noted)
    ours = mlxdist.DistributedOptimizer(optim.SGD(0.1), world=apart, shard=True)
    own = tree(0)
    ours.init(own)
    grads = {**tree(1), "a": slow(0.5)}
    apart.barrier()
    began = time.perf_counter()
    mx.eval(ours.apply_gradients(grads, own))
    took = time.perf_counter() - began
    assert posted[0] - began < took / 2
    assert any(moment - began > took / 2 for moment in posted)
