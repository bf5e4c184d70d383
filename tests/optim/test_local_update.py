"""Which kernels the local update runs on: compiled ones, or MLX's own."""

import sys
from contextlib import nullcontext

import mlx.core as mx
import pytest

from mlxdist.arrays import device
from tests.support import jobs
from tests.support.compiled import assert_as_eager
from tests.support.examples import (
    distributed,
    each_shard,
    each_transport,
    rank_batch,
    seeded_net,
    update,
)


@pytest.mark.mpi
@each_shard
@each_transport
def test_compiled_update_of_a_model_with_frozen_layers_gives_the_bits_of_eager(
    shard, transport, world, request
):
    def build():
        model = seeded_net(3)
        optimizer = distributed(
            world, shard=shard, transport=transport, bucket_size=64, max_norm=1.0
        )
        optimizer.init(model)
        return model, optimizer

    eager_model, eager = build()
    request.getfixturevalue("compiled_always")
    model, optimizer = build()
    frozen = model.frozen.weight
    assert [o.describe().compiled for o in (eager, optimizer)] == [False, True]
    for step in range(4):
        x, y = rank_batch(world, step)
        update(eager_model, eager, x, y)
        update(model, optimizer, x, y)
    assert model.frozen.weight is frozen
    assert not optimizer.gather_state()["frozen"]
    assert_as_eager(model.parameters(), eager_model.parameters())
    assert_as_eager(optimizer.gather_state(), eager.gather_state())
    assert world.identical(model)


@pytest.mark.mpi(min_size=2)
@pytest.mark.usefixtures("compiled_always")
def test_compiler_that_fails_on_one_rank_leaves_all_ranks_eager(world, monkeypatch):
    def fail(dtype):
        raise RuntimeError("no compiler")

    is_last = world.rank == world.size - 1
    if is_last:
        monkeypatch.setattr(device, "fits_one_kernel", fail)
    optimizer = distributed(world)
    with pytest.warns(UserWarning, match="no compiler") if is_last else nullcontext():
        optimizer.init({"w": mx.ones(5)})
    assert not optimizer.describe().compiled


TRAIN_WITHOUT_A_COMPILER = """
import mlx.core as mx, mlx.optimizers as optim
import mlxdist

size = 2**18  # 1 MiB: large enough to be compiled where that works
tree = {"w": mx.ones(size), "b": mx.ones(3)}
optimizer = mlxdist.DistributedOptimizer(optim.SGD(0.5, momentum=0.5))
optimizer.init(tree)
for _ in range(2):
    tree = optimizer.apply_gradients({"w": mx.ones(size), "b": mx.ones(3)}, tree)
print(tree["w"][:1].tolist() + tree["b"].tolist())
"""

BROKEN_COMPILER = """#!/bin/sh
[ "$1" = --version ]
"""


@pytest.mark.parametrize("compiler", ["missing", "broken"])
def test_update_without_a_cpp_compiler_trains_eagerly(compiler, tmp_path):
    """MLX asks for g++ on PATH, and looks for compiled kernels in TMPDIR."""
    if compiler == "broken":
        (tmp_path / "g++").write_text(BROKEN_COMPILER)
        (tmp_path / "g++").chmod(0o755)
    ran = jobs.run(
        [sys.executable, "-c", TRAIN_WITHOUT_A_COMPILER],
        env={"PATH": str(tmp_path), "TMPDIR": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "[-0.25, -0.25, -0.25, -0.25]"
    if compiler == "broken":  # without any, MLX compiles nothing
        assert ran.stderr.startswith("<string>:8: UserWarning")  # where init() is
        assert ran.stderr.count("can't compile the optimizer's update") == 1
        assert "MLX needs g++ on PATH" in ran.stderr
