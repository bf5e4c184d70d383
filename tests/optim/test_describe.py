"""describe(): bytes of state and on the wire, compared with what is held and sent."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from tests.support.examples import (
    apply_steps,
    distributed,
    distributed_with_masters,
    each_shard,
    each_transport,
    full_like,
    parameters,
)

pytestmark = pytest.mark.mpi


def linear_layers():
    """A model with sizes that 2, 3 and 4 ranks do not divide."""
    return nn.Sequential(*(nn.Linear(101, 101) for _ in range(7)))


def element_count(model):
    return sum(array.size for _, array in tree_flatten(model.parameters()))


def traffic_of(world, transport):
    comm = world.native if transport == "native" else world.host_transport
    return comm.traffic.collectives, comm.traffic.bytes_sent


def sum_over_ranks(world, number):
    return world.mean(float(number)) * world.size


def test_description_of_sharded_state_is_a_share_and_at_most_1_percent_more(world):
    model = linear_layers()
    optimizer = distributed(world, shard=True)
    optimizer.init(model)
    description = optimizer.describe()
    total = 2 * 4 * element_count(model)
    assert description.state_bytes_unsharded == total
    assert max(description.state_bytes_by_rank) <= total / world.size * 1.01
    assert sum(description.state_bytes_by_rank) == total
    state = tree_flatten(optimizer.state)
    local = sum(a.nbytes for path, a in state if path.endswith((".m", ".v")))
    assert local == description.state_bytes
    assert local == description.state_bytes_by_rank[world.rank]
    assert str(description).count(" MB of state") == world.size


def test_description_of_master_weights_counts_12_bytes_a_parameter(world):
    """AdamW's two moments and the master in float32; parameters travel as bfloat16."""
    model = linear_layers()
    model.set_dtype(mx.bfloat16)
    optimizer = distributed_with_masters(
        world, shard=True, transport="host", bucket_size=2**20
    )
    optimizer.init(model)
    size = element_count(model)
    description = optimizer.describe()
    assert sum(description.state_bytes_by_rank) == 12 * size
    assert max(description.state_bytes_by_rank) <= 12 * size / world.size * 1.01
    _, before = traffic_of(world, "host")
    optimizer.update(model, full_like(model.trainable_parameters(), 1))
    _, after = traffic_of(world, "host")
    assert after - before == description.traffic.bytes_sent
    total = sum_over_ranks(world, description.traffic.bytes_sent)
    assert total == (world.size - 1) * (2 + 2) * size


@each_shard
@each_transport
def test_description_of_traffic_is_what_a_step_sends(shard, transport, world):
    tree = {
        name: part
        for name, part in parameters().items()
        if all(array.dtype == mx.float32 for _, array in tree_flatten(part))
    }
    optimizer = distributed(world, shard=shard, transport=transport, bucket_size=200)
    optimizer.init(tree)
    traffic = optimizer.describe().traffic
    collectives, sent = traffic_of(world, transport)
    apply_steps(optimizer, tree, range(1), world.rank)
    collectives_after, sent_after = traffic_of(world, transport)
    assert collectives_after - collectives == traffic.collectives
    assert sent_after - sent == traffic.bytes_sent
    if transport == "host" and shard == "elements":
        nbytes = sum(leaf.nbytes for _, leaf in tree_flatten(tree))
        share = 2 * (world.size - 1)  # 2(N-1)/N of the bytes on each of N ranks
        assert sum_over_ranks(world, traffic.bytes_sent) == share * nbytes


@pytest.mark.mpi(min_size=2)
def test_description_of_a_tensor_that_one_rank_owns_counts_its_state_there(world):
    optimizer = distributed(world, shard="tensors")
    optimizer.init({"w": mx.zeros(1000)})
    held = sum(
        leaf.nbytes for path, leaf in tree_flatten(optimizer.state) if "w" in path
    )
    assert optimizer.describe().state_bytes == held
    assert sum_over_ranks(world, held) == 8000


@pytest.mark.mpi(min_size=2)
def test_description_between_micro_batches_counts_their_float32_sums(world):
    tree = {"w": mx.zeros(1000, mx.bfloat16)}
    optimizer = distributed(world, optim.SGD(1.0), shard=True, transport="host")
    optimizer.init(tree)
    before = optimizer.describe()
    with optimizer.no_sync():
        optimizer.apply_gradients(tree, tree)
    between = optimizer.describe()
    for description, nbytes in ((before, 2 + 2), (between, 4 + 2)):
        total = sum_over_ranks(world, description.traffic.bytes_sent)
        assert total == (world.size - 1) * nbytes * 1000
    assert between.memory["update"]["gradient sums"] == 4000


@pytest.mark.mpi(min_size=2)
def test_description_of_a_16_bit_wire_counts_half_of_the_gradients_bytes(world):
    tree = {"w": mx.zeros((1000,))}
    grads = {"w": mx.full((1000,), float(world.rank))}
    full, half = (
        distributed(
            world, optim.SGD(1.0), shard=True, transport="host", wire_dtype=dtype
        )
        for dtype in (None, mx.bfloat16)
    )
    full.init(tree)
    half.init(tree)
    result = half.apply_gradients(grads, tree)
    assert result["w"][0].item() == pytest.approx(-(world.size - 1) / 2)
    ratio = half.describe().traffic.bytes_sent / full.describe().traffic.bytes_sent
    assert ratio == pytest.approx(0.75, abs=0.01)
