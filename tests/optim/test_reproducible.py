"""The same bits on any number of ranks, however state is cut, on either transport."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import Net, assert_same_bits, batch, loss

pytestmark = pytest.mark.mpi
INNER = {
    "AdamW": lambda: optim.AdamW(optim.linear_schedule(3e-2, 1e-3, 9)),
    "Muon": lambda: optim.MultiOptimizer(
        [optim.Muon(1e-2), optim.AdamW(1e-2)], [lambda path, x: x.ndim == 2]
    ),
}
CASES = [
    (False, "native"),
    (False, "host"),
    ("elements", "host"),
    ("elements", "native"),
    ("tensors", "host"),
    ("tensors", "native"),
]


def micro_batches(world):
    """How many there are in a step: they can be split over all parts of the world."""
    return 12 if world.size == 3 else max(8, world.size)


def begun(part, every, name, shard, transport, dtype=mx.float32, **options):
    mx.random.seed(5)
    model = Net()
    model.set_dtype(dtype)
    ours = mlxdist.DistributedOptimizer(
        INNER[name](),
        world=part,
        shard=shard,
        transport=transport,
        bucket_size=256,
        max_norm=0.3,
        accumulate=every // part.size,
        reproducible=options.pop("reproducible", True),
        **options,
    )
    ours.init(model)
    return model, ours


def train(model, ours, steps):
    """Micro-batches of 1, 2 or 3 rows, some of no weight."""
    part, each = ours.world, ours._accumulation.every
    for step in steps:
        for own in range(each):
            number = part.rank * each + own
            rows = 1 + number % 3
            x, y = batch(1000 * step + number, rows)
            _, grads = nn.value_and_grad(model, loss)(
                model, x.astype(model.gain.dtype), y
            )
            ours.update(model, grads, weight=0 if number == 1 else rows)
    mx.eval(model.parameters())
    return model, ours


def parts_of(world):
    """The whole world, and worlds of fewer ranks, each rank being in one of each."""
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
)
def test_bits_do_not_depend_on_the_ranks(name, dtype, world):
    every = micro_batches(world)
    masters = None if dtype == mx.float32 else mx.float32
    first = None
    for part in parts_of(world):
        for shard, transport in CASES:
            if name == "Muon" and shard == "elements":
                continue
            model, ours = begun(
                part, every, name, shard, transport, dtype, master_dtype=masters
            )
            train(model, ours, range(4))
            first = first or (model.parameters(), ours.grad_norm)
            where = f"{part.size} ranks, {shard}, {transport}"
            assert ours.grad_norm.item() == first[1].item(), where
            assert_same_bits(model.parameters(), first[0])
    assert world.identical(first[0])


@pytest.mark.mpi(min_size=4)
def test_without_it_bits_differ(world):
    """That the test above can fail."""
    every = micro_batches(world)
    norms = set()
    for part in parts_of(world):
        model, ours = begun(
            part, every, "AdamW", "elements", "host", reproducible=False
        )
        train(model, ours, range(4))
        norms.add(ours.grad_norm.item())
    assert len(norms) > 1


def test_a_run_goes_on_with_the_same_bits_on_fewer_ranks(world, shared_folder):
    every = micro_batches(world)
    model, ours = begun(world, every, "AdamW", True, "host")
    train(model, ours, range(2))
    mlxdist.save_checkpoint(shared_folder, 2, model, ours)
    train(model, ours, range(2, 4))
    for part in parts_of(world):
        other, resumed = begun(part, every, "AdamW", "tensors", "native")
        mlxdist.load_checkpoint(shared_folder, other, resumed)
        train(other, resumed, range(2, 4))
        assert_same_bits(other.parameters(), model.parameters())


def test_traffic_is_what_the_plan_says(world):
    for shard, transport in CASES:
        model, ours = begun(world, world.size, "AdamW", shard, transport)
        wire = world.native if transport == "native" else world.host_transport
        before = wire.traffic.bytes_sent
        train(model, ours, range(1))
        sent = wire.traffic.bytes_sent - before
        assert sent == ours.describe().traffic.bytes_sent, (shard, transport)


def test_what_is_no_part_of_the_tree_is_refused(world):
    wire = {"transport": "host", "wire_dtype": mx.bfloat16}
    with pytest.raises(ValueError, match="wire_dtype is"):
        mlxdist.DistributedOptimizer(optim.SGD(0.1), reproducible=True, **wire)
    if world.size == 1:
        return
    with pytest.raises(ValueError, match="a power of two a rank"):
        mlxdist.DistributedOptimizer(optim.SGD(0.1), reproducible=True, accumulate=3)
    ours = mlxdist.DistributedOptimizer(optim.SGD(0.1), reproducible=True)
    own = {"w": mx.zeros(3)}
    ours.init(own)
    with ours.no_sync():
        for _ in range(2):
            ours.apply_gradients(own, own)
    with pytest.raises(MismatchError, match="3 of them"):
        ours.apply_gradients(own, own)


def test_saving_in_the_middle_is_refused(world, shared_folder):
    ours = mlxdist.DistributedOptimizer(optim.SGD(0.1), reproducible=True, accumulate=2)
    own = {"w": mx.zeros(3)}
    ours.init(own)
    ours.apply_gradients(own, own)
    with pytest.raises(MismatchError, match="after the step's last update"):
        mlxdist.save_checkpoint(shared_folder, 1, own, ours)
