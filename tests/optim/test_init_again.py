"""init in mid-run: state is kept path by path, and only what moves is sent."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxdist import MismatchError
from mlxdist.optim import state_exchange
from tests.support.examples import (
    CLASSES,
    assert_same_bits,
    distributed,
    each_shard,
    gradients,
    make,
    parameters,
    shard_modes,
)
from tests.support.states import trained

pytestmark = pytest.mark.mpi

SCALARS = 12  # bytes of step and learning rate, which rank 0 sends


def tree_of(**extra):
    """Three matrices of sizes that no number of ranks divides, and what is added."""
    tree = {f"w{i}": mx.arange(35.0).reshape(5, 7) + i for i in range(3)}
    return {**tree, **extra}


@each_shard
def test_replaced_and_new_parameters_begin_anew_and_are_named(shard, world, capfd):
    optimizer = trained(world, tree_of(head=mx.ones((4, 3))), shard=shard)
    before = optimizer.gather_state()
    optimizer.init(tree_of(head=mx.ones((6, 3)), new=mx.ones(2)))
    after = optimizer.gather_state()
    for name in tree_of():
        assert_same_bits(after[name], before[name])
        assert mx.any(after[name]["m"] != 0)
    for name in ("head", "new"):
        assert not mx.any(after[name]["m"]).item()
    assert optimizer.step.item() == 2
    line = "new state for 2 of 5 parameters: head float32[6, 3] ([4, 3] before), "
    text = capfd.readouterr().err
    assert (line + "new float32[2] (new)" in text) == world.is_root
    assert "head float32[6, 3] ([4, 3] before)" in str(optimizer.describe())
    optimizer.init(tree_of(head=mx.ones((6, 3)), new=mx.ones(2)))
    assert optimizer.describe().begun_anew == ()


@each_shard
@pytest.mark.parametrize("masters", [None, mx.float32])
def test_cast_parameters_keep_their_state_in_the_new_dtype(masters, shard, world):
    tree = tree_of(b=mx.arange(4.0))
    optimizer = trained(world, tree, shard=shard, master_dtype=masters)
    before = optimizer.gather_state()
    half = {name: array.astype(mx.bfloat16) for name, array in tree.items()}
    optimizer.init(half)
    after = optimizer.gather_state()
    dtype = masters or mx.bfloat16
    for name in tree:
        assert_same_bits(after[name]["m"], before[name]["m"].astype(dtype))
        assert ("master" in after[name]) == (masters is not None)
    half = optimizer.apply_gradients(gradients(half, 3, world.rank), half)
    optimizer.init({name: array.astype(mx.float32) for name, array in half.items()})
    assert "master" not in optimizer.gather_state()["b"]
    assert mx.any(optimizer.gather_state()["b"]["v"] != 0)


@each_shard
def test_another_cut_moves_only_what_gets_another_owner(shard, world):
    tree = tree_of(a=mx.arange(10.0))
    optimizer = trained(world, tree, shard=shard)
    before = optimizer.gather_state()
    del tree["w0"]  # frozen
    traffic = world.control.traffic
    sent, nbytes = traffic.bytes_sent, optimizer.describe().state_bytes_unsharded
    optimizer.init(tree)
    moved = world.mean(float(traffic.bytes_sent - sent)) * world.size
    assert moved < nbytes * max(1, world.size - 1)
    if not shard:
        assert moved == SCALARS
    after = optimizer.gather_state()
    assert_same_bits(after, {k: v for k, v in before.items() if k != "w0"})


@each_shard
def test_state_of_frozen_parameters_is_dropped(shard, world):
    optimizer = trained(world, tree_of(head=mx.ones((4, 3))), shard=shard)
    optimizer.init(tree_of())
    assert "head" not in optimizer.state
    optimizer.state = tree_map(mx.array, optimizer.state)  # no state of another model
    assert optimizer.gather_state().keys() == {*tree_of(), "step", "learning_rate"}


@each_shard
def test_init_again_of_the_same_model_sends_no_state(shard, world):
    optimizer = trained(world, tree_of(), shard=shard)
    sent = world.control.traffic.bytes_sent
    optimizer.init(tree_of())
    assert world.control.traffic.bytes_sent - sent == SCALARS * world.is_root


@pytest.mark.mpi(min_size=2)
def test_moves_hold_no_more_than_a_piece_of_what_others_want(world, monkeypatch):
    """The first rank's state goes to the last, in pieces of 512 KiB."""
    monkeypatch.setattr(state_exchange, "PIECE_BYTES", 2**19)
    big = mx.zeros(2**20)
    optimizer = trained(world, {"a": big, "b": mx.ones(8)}, shard="tensors")
    bigger = {"a": big, "b": mx.ones(8), "c": mx.zeros(2**20 + 1)}
    mx.eval(optimizer.state, bigger)
    mx.reset_peak_memory()
    start = mx.get_active_memory()
    optimizer.init(bigger)
    owns = sum(
        v.nbytes for k, s in optimizer.state.items() if k in "abc" for v in s.values()
    )
    # Two pieces, and scalars. The whole state has 8 MiB.
    assert mx.get_peak_memory() - start < 2 * owns + 2**20 + 2**16


class Failing(optim.SGD):
    elementwise = True
    fails = False

    def init_single(self, parameter, state):
        if Failing.fails:
            raise RuntimeError("no memory for it")
        super().init_single(parameter, state)


@each_shard
def test_init_that_fails_on_one_rank_fails_on_all_and_keeps_the_state(
    shard, world, monkeypatch
):
    tree = tree_of()
    optimizer = trained(world, tree, Failing(0.1, 0.9), shard=shard)
    before = optimizer.gather_state()
    monkeypatch.setattr(Failing, "fails", world.rank == world.size - 1)
    with pytest.raises(MismatchError, match="no memory for it"):
        optimizer.init(tree_of(b=mx.ones(3 * world.size)))
    monkeypatch.setattr(Failing, "fails", False)
    assert_same_bits(optimizer.gather_state()["w0"]["v"], before["w0"]["v"])
    optimizer.apply_gradients(gradients(tree, 0, 0), tree)
    optimizer.init(tree_of(b=mx.ones(3)))


@pytest.mark.parametrize("tree", [None, 3.0, "text", {"w": None}, {"w": [1, "a"]}])
def test_init_of_no_parameters_on_one_rank_is_refused_on_all(tree, world):
    optimizer = distributed(world, shard=True)
    good = {"w": mx.ones(3)}
    with pytest.raises(
        MismatchError, match=rf"rank {world.size - 1}: .* not an mx.array"
    ):
        optimizer.init(tree if world.rank == world.size - 1 else good)
    optimizer.init(good)


@pytest.mark.mpi(min_size=2)
def test_filter_that_fails_on_one_rank_is_refused_on_all(world):
    def is_matrix(path, array):
        if world.rank == 1:
            raise KeyError(path)
        return array.ndim == 2

    inner = optim.MultiOptimizer([optim.Adam(0.1), optim.SGD(0.1)], [is_matrix])
    with pytest.raises(MismatchError, match="rank 1: KeyError: 'w'"):
        distributed(world, inner).init({"w": mx.ones(3)})


@each_shard
def test_parameters_of_another_optimizer_begin_anew(shard, world):
    """A filter that sends `b` from Adam to SGD, whose momentum is called "v" too."""
    takes = {"b"}
    inner = optim.MultiOptimizer(
        [optim.Adam(0.1), optim.SGD(0.1, 0.9)], [lambda path, x: path in takes]
    )
    tree = {"a": mx.arange(6.0), "b": mx.arange(6.0)}
    optimizer = trained(world, tree, inner, shard=shard)
    before = optimizer.gather_state()["states"]
    takes.clear()
    optimizer.init(tree)
    after = optimizer.gather_state()["states"]
    assert_same_bits(after[1]["a"], before[1]["a"])
    assert not mx.any(after[1]["b"]["v"]).item()
    assert optimizer.describe().begun_anew == (
        "b float32[6] (its state before is of another optimizer)",
    )


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_state_of_every_class_is_kept_when_a_parameter_is_frozen(name, world):
    for shard in shard_modes(name):
        tree = parameters(name)
        optimizer = trained(world, tree, make(name), shard=shard)
        before = dict(tree_flatten(optimizer.gather_state()))
        del tree["embed"]
        optimizer.init(tree)
        after = dict(tree_flatten(optimizer.gather_state()))
        assert_same_bits(after, {p: before[p] for p in before if "embed" not in p})


@pytest.mark.mpi(min_size=2)
def test_optimizers_are_numbered_in_the_order_of_their_init(world):
    part = world.split(0)
    optimizers = [distributed(part), distributed(part, optim.SGD(0.1))]
    for optimizer in (*optimizers, optimizers[0]):
        optimizer.init({"w": mx.ones(3)})
    names = [optimizer.pipelines.name for optimizer in optimizers]
    assert names == ["optimizer 1 (AdamW)", "optimizer 2 (SGD)"]
