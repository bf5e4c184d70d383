"""reproducible=True: the same bits on any number of ranks, shard and transport."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import (
    CASES,
    assert_same_bits,
    batch,
    bits,
    distributed,
    loss_and_gradients,
    seeded_net,
)

pytestmark = pytest.mark.mpi
INNER = {
    "AdamW": lambda: optim.AdamW(optim.linear_schedule(3e-2, 1e-3, 9)),
    "Muon": lambda: optim.MultiOptimizer(
        [optim.Muon(1e-2), optim.AdamW(1e-2)], [lambda path, x: x.ndim == 2]
    ),
}


class Run:
    """A model and its optimizer on a part of the world, which train together.

    Args:
        part: the ranks that train.
        micro_batches: those of a step, over all ranks of the part.
    """

    def __init__(self, part, micro_batches, name="AdamW", dtype=mx.float32, **options):
        self.part = part
        self.per_rank = micro_batches // part.size
        self.model = seeded_net(5)
        self.model.set_dtype(dtype)
        self.optimizer = distributed(
            part,
            INNER[name](),
            accumulate=self.per_rank,
            **{"bucket_size": 256, "max_norm": 0.3, "reproducible": True, **options},
        )
        self.optimizer.init(self.model)

    def train(self, steps):
        """Take steps on micro-batches of 1 to 3 rows; the second has weight 0.

        The weights are no integers, so that the order in which they are added counts.
        """
        dtype = self.model.gain.dtype
        for step in steps:
            for index in range(self.per_rank):
                number = self.part.rank * self.per_rank + index
                x, y = batch(1000 * step + number, 1 + number % 3)
                _, grads = loss_and_gradients(self.model, x.astype(dtype), y)
                weight = 0.0 if number == 1 else 0.1 * (1 + number)
                self.optimizer.update(self.model, grads, weight=weight)
        mx.eval(self.model.parameters())
        return self


def count_micro_batches(world):
    """Return a number that all parts of the world divide."""
    return 12 if world.size == 3 else max(8, world.size)


def parts_of(world):
    """Return the world, and worlds of fewer ranks; each rank is in one of each size."""
    sizes = [n for n in (1, 2, 3, 4, 8) if world.size % n == 0]
    return [world.split(world.rank // size) for size in sizes]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("AdamW", mx.float32),
        ("Muon", mx.bfloat16),
        pytest.param("AdamW", mx.bfloat16, marks=pytest.mark.long),
        pytest.param("Muon", mx.float32, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_reproducible_steps_on_any_ranks_give_the_same_bits(name, dtype, world):
    masters = None if dtype == mx.float32 else mx.float32
    cases = [case for case in CASES if name != "Muon" or case[0] != "elements"]
    runs = {
        (part.size, shard, transport): Run(
            part,
            count_micro_batches(world),
            name,
            dtype,
            shard=shard,
            transport=transport,
            master_dtype=masters,
        ).train(range(2))
        for part in parts_of(world)
        for shard, transport in cases
    }
    first = next(iter(runs.values()))
    norm = first.optimizer.grad_norm.item()
    for case, run in runs.items():
        assert run.optimizer.grad_norm.item() == norm, case
        assert_same_bits(run.model.parameters(), first.model.parameters())
    assert world.identical(first.model.parameters())


@pytest.mark.mpi(min_size=4)
def test_steps_that_are_not_reproducible_give_other_bits(world):
    """So that the test above can fail."""
    results = set()
    for part in parts_of(world):
        run = Run(
            part,
            count_micro_batches(world),
            shard="elements",
            transport="host",
            reproducible=False,
        )
        model = run.train(range(4)).model
        arrays = [array for _, array in tree_flatten(model.parameters())]
        results.add(b"".join(bits(array).tobytes() for array in arrays))
    assert len(results) > 1


def test_reproducible_run_resumed_on_fewer_ranks_gives_the_same_bits(
    world, shared_folder
):
    count = count_micro_batches(world)
    run = Run(world, count, shard=True, transport="host").train(range(2))
    mlxdist.save_checkpoint(shared_folder, 2, run.model, run.optimizer)
    run.train(range(2, 4))
    for part in parts_of(world):
        resumed = Run(part, count, shard="tensors", transport="native")
        mlxdist.load_checkpoint(shared_folder, resumed.model, resumed.optimizer)
        resumed.train(range(2, 4))
        assert_same_bits(resumed.model.parameters(), run.model.parameters())


@pytest.mark.parametrize(("shard", "transport"), CASES)
def test_reproducible_step_sends_what_its_description_says(shard, transport, world):
    run = Run(world, world.size, shard=shard, transport=transport)
    comm = world.native if transport == "native" else world.host_transport
    before = comm.traffic.bytes_sent
    run.train(range(1))
    sent = comm.traffic.bytes_sent - before
    assert sent == run.optimizer.describe().traffic.bytes_sent


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("shard", "transport"), CASES)
def test_reproducible_norm_is_that_of_means_which_16_bits_cannot_hold(
    shard, transport, world
):
    options = {"max_norm": 1e9, "bucket_size": 8, "reproducible": True}
    part = world.split(0 if world.rank < 2 else 1)
    optimizer = distributed(
        part, optim.SGD(0.5), shard=shard, transport=transport, **options
    )
    tree = {"w": mx.zeros(4, mx.bfloat16)}
    optimizer.init(tree)
    grads = {"w": mx.full((4,), 1 + part.rank * 2.0**-7, mx.bfloat16)}
    optimizer.apply_gradients(grads, tree)
    if part.size == 2:
        assert optimizer.grad_norm.item() == 2 * (1 + 2.0**-8)
    part.close()


def test_reproducible_with_a_wire_dtype_is_refused(world):
    with pytest.raises(ValueError, match="wire_dtype is"):
        distributed(world, reproducible=True, transport="host", wire_dtype=mx.bfloat16)


@pytest.mark.mpi(min_size=2)
def test_reproducible_with_other_than_a_power_of_two_micro_batches_is_refused(world):
    with pytest.raises(ValueError, match="a power of two on each rank"):
        distributed(world, reproducible=True, accumulate=3)
    optimizer = distributed(world, optim.SGD(0.1), reproducible=True)
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    with optimizer.no_sync():
        for _ in range(2):
            optimizer.apply_gradients(tree, tree)
    with pytest.raises(MismatchError, match="3 on each of"):
        optimizer.apply_gradients(tree, tree)


def test_reproducible_checkpoint_in_the_middle_of_a_step_is_refused(
    world, shared_folder
):
    optimizer = distributed(world, optim.SGD(0.1), reproducible=True, accumulate=2)
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    optimizer.apply_gradients(tree, tree)
    with pytest.raises(ValueError, match="after the step's last update"):
        mlxdist.save_checkpoint(shared_folder, 1, tree, optimizer)
