"""Trees of any keys and containers: trained, saved and loaded as MLX trains them."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from mlxdist.arrays.trees import leaves_of, nested
from tests.support.checkpoints import zeros
from tests.support.examples import (
    distributed,
    each_shard,
    gradients,
    gradients_of_ranks,
    mean_of,
)
from tests.support.trees import Layer, assert_same_trees, odd_trees

pytestmark = pytest.mark.mpi


def sgd():
    return optim.SGD(0.5, momentum=0.5)


@each_shard
def test_odd_trees_are_trained_saved_and_loaded_as_by_mlx(shard, world, shared_folder):
    plain, expected = sgd(), odd_trees()
    optimizer = distributed(world, sgd(), shard=shard, bucket_size=16)
    tree = odd_trees()
    plain.init(expected)
    optimizer.init(tree)
    for step in range(2):
        if step == 1:
            save_checkpoint(shared_folder, 1, tree, optimizer)
        mean = mean_of(gradients_of_ranks(tree, step, world.size))
        expected = plain.apply_gradients(mean, expected)
        local = gradients(tree, step, world.rank)
        tree = optimizer.apply_gradients(local, tree)
    assert_same_trees(tree, expected)
    full = optimizer.gather_state()
    assert_same_trees(full, plain.state)

    restored = zeros(odd_trees())
    other = distributed(world, sgd(), shard=shard, bucket_size=2**20)
    load_checkpoint(shared_folder, restored, other)
    restored = other.apply_gradients(gradients(restored, 1, world.rank), restored)
    assert_same_trees(restored, expected)
    third = distributed(world, sgd(), shard=shard)
    third.init(tree)
    third.load_state(full)
    assert_same_trees(third.gather_state(), full)


class Features(nn.Module):
    """A model of dicts whose keys have dots and are digits, one part of them frozen."""

    def __init__(self):
        super().__init__()
        self.features = {"user.age": nn.Linear(3, 4), "user": {"age": nn.Linear(3, 4)}}
        self.layers = {"0": nn.Linear(4, 3), "2": [nn.Linear(3, 2), nn.ReLU()]}

    def __call__(self, x):
        x = self.features["user.age"](x) * self.features["user"]["age"](x)
        return self.layers["2"][0](self.layers["0"](x)).square().mean()


@each_shard
@pytest.mark.parametrize("frozen", [False, True])
def test_module_of_dicts_is_trained_saved_and_loaded(
    shard, frozen, world, shared_folder
):
    mx.random.seed(3)
    model = Features()
    if frozen:
        model.features["user.age"].freeze()
    optimizer = distributed(world, shard=shard, bucket_size=16, ema_decay=0.5)
    optimizer.init(model)
    before = leaves_of(model.parameters())
    for _ in range(2):
        _, grads = nn.value_and_grad(model, Features.__call__)(model, mx.ones((2, 3)))
        optimizer.update(model, grads)
    after = leaves_of(model.parameters())
    moved = {p for p in after if mx.any(after[p] != before[p]).item()}
    assert moved == leaves_of(model.trainable_parameters()).keys()

    save_checkpoint(shared_folder, 2, model, optimizer)
    other = Features()
    if frozen:
        other.features["user.age"].freeze()
    resumed = distributed(world, shard=shard, ema_decay=0.5)
    load_checkpoint(shared_folder, other, resumed)
    assert_same_trees(other.parameters(), model.parameters())
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())


@each_shard
def test_state_of_named_tuples_that_was_assigned_is_stepped(shard, world):
    """MLX's own `init` fails on the state of a named tuple (mlx#2845)."""
    tree = {"a": Layer(mx.ones((3, 2)), mx.ones(5)), "b": mx.ones(2)}
    first, second = (distributed(world, sgd(), shard=shard) for _ in range(2))
    first.init(tree)
    second.init(tree)
    grads = gradients(tree, 0, world.rank)
    once = first.apply_gradients(grads, tree)
    second.state = tree_map(lambda leaf: leaf, first.state)  # other dicts
    expected = first.apply_gradients(grads, once)
    assert_same_trees(second.apply_gradients(grads, once), expected)


@each_shard
def test_checkpoint_of_any_tree_loads_on_another_number_of_ranks(
    shard, world, shared_folder
):
    part = world.split(int(world.rank > 0))  # one rank, and all others
    tree = odd_trees()
    optimizer = distributed(part, sgd(), shard=shard, bucket_size=16)
    optimizer.init(tree)
    tree = optimizer.apply_gradients(gradients(tree, 0, 0), tree)
    if world.is_root:
        save_checkpoint(shared_folder, 1, tree, optimizer)
    world.barrier()
    restored = zeros(odd_trees())
    resumed = distributed(world, sgd(), shard=shard)
    load_checkpoint(shared_folder, restored, resumed)
    assert_same_trees(restored, tree)
    assert_same_trees(resumed.gather_state(), optimizer.gather_state())


@pytest.mark.mpi(min_size=2)
def test_init_of_a_dict_on_one_rank_and_a_list_on_another_is_refused(world):
    tree = {"x": {"0": mx.zeros(3)}} if world.is_root else {"x": [mx.zeros(3)]}
    with pytest.raises(MismatchError, match=r'x\."0" float32\[3\]'):
        distributed(world).init(tree)


@pytest.mark.parametrize("tree", [mx.zeros(3), [mx.zeros(3)], (mx.zeros(3),)])
def test_init_of_a_tree_that_is_no_dict_is_refused(tree, world):
    with pytest.raises(MismatchError, match="put it into a dict"):
        distributed(world).init(tree)


def test_nested_keeps_what_is_empty_and_lacks_what_is_not_given():
    like = {"a": {"x": 1}, "b": [(1, 1), 1], "c": ([], {}), "d": [1]}
    paths = list(leaves_of(like))
    assert nested({paths[2]: 5}, like) == {"b": [({}, 5), {}], "c": ([], {})}
    assert nested({}, like) == {"c": ([], {})}
