"""Moments in 8 bits: cut, moved, gathered, and converted from and to float32."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim.moments import kinds, pairs_of, quantized, widened
from tests.support.eight_bits import moments, moments_of, rounded, tree_of
from tests.support.examples import assert_same_bits, distributed, each_shard
from tests.support.states import assign, before_and_after_init, saved


def with_state(world, tree, state, **options):
    """Return an optimizer with its state in 8 bits that has loaded a full state."""
    options = {"state_dtype": "int8", "bucket_size": 2**14, **options}
    optimizer = distributed(world, optim.AdamW(1e-2), **options)
    optimizer.init(tree)
    optimizer.load_state(state)
    return optimizer


@each_shard
@pytest.mark.mpi
def test_gathered_state_is_the_loaded_one_rounded_to_8_bits(shard, world):
    tree = tree_of()
    state = moments(tree)
    optimizer = with_state(world, tree, state, shard=shard)
    assert_same_bits(moments_of(optimizer.gather_state()), moments_of(rounded(state)))
    total = sum(optimizer.describe().state_bytes_by_rank)
    elements = sum(a.size for a in tree.values() if a.ndim > 1)
    copies = world.size if shard is False else 1
    assert total == (elements * 2 * 68 // 64 + 7 * 8) * copies


@each_shard
@before_and_after_init
@pytest.mark.mpi
def test_state_of_this_rank_goes_into_another_optimizer(before_init, shard, world):
    tree = tree_of()
    one = with_state(world, tree, moments(tree), shard=shard)
    other = distributed(
        world, optim.AdamW(1e-2), shard=shard, state_dtype="int8", bucket_size=2**14
    )
    assign(other, saved(one.state), tree, before_init)
    assert_same_bits(other.gather_state(), one.gather_state())
    assert other.state["step"].item() == 3


@each_shard
@before_and_after_init
@pytest.mark.mpi
def test_full_float32_state_is_taken_in_8_bits(before_init, shard, world):
    tree = tree_of()
    state = moments(tree)
    optimizer = distributed(world, shard=shard, state_dtype="int8", bucket_size=2**14)
    assign(optimizer, saved(state), tree, before_init)
    assert_same_bits(moments_of(optimizer.gather_state()), moments_of(rounded(state)))


@each_shard
@pytest.mark.mpi
def test_state_in_8_bits_is_taken_as_float32(shard, world):
    """Both a full one, and each rank's own."""
    tree = tree_of()
    state = moments(tree)
    whole = with_state(world.split(world.rank), tree, state)
    cut = with_state(world, tree, state, shard=shard)
    for given in (whole.state, cut.state):
        optimizer = distributed(world, shard=shard, bucket_size=2**14)
        optimizer.init(tree)
        if given is cut.state and shard == "elements" and world.size > 1:
            continue  # float32 state is not cut between blocks
        optimizer.state = saved(given)
        assert_same_bits(
            moments_of(optimizer.gather_state()), moments_of(rounded(state))
        )


@each_shard
@pytest.mark.mpi
def test_init_again_with_other_parameters_keeps_the_codes(shard, world):
    tree = tree_of()
    optimizer = with_state(world, tree, moments(tree), shard=shard)
    before = optimizer.gather_state()
    optimizer.init(tree_of(names="ab"))
    assert_same_bits(optimizer.gather_state()["a"], before["a"])
    optimizer.init(tree)
    after = optimizer.gather_state()
    assert_same_bits(after["a"], before["a"])
    assert mx.max(after["c"]["m"]).item() == 0
    optimizer.init(tree_of(mx.bfloat16))
    assert_same_bits(optimizer.gather_state()["a"], before["a"])


@each_shard
@pytest.mark.mpi
def test_cast_parameters_begin_with_new_corrections(shard, world):
    """They are of another last place."""
    tree = tree_of(mx.bfloat16)
    optimizer = distributed(world, shard=shard, master_dtype="24bit")
    optimizer.init(tree)
    for piece in optimizer.state.values():
        if isinstance(piece, dict) and "correction" in piece:
            piece["correction"] = mx.full(piece["correction"].shape, 5, mx.int8)
    optimizer.init({n: a for n, a in tree.items() if n != "b"})
    assert mx.min(optimizer.gather_state()["a"]["correction"]).item() == 5
    optimizer.init(tree_of(mx.float16))
    assert mx.max(optimizer.gather_state()["a"]["correction"]).item() == 0


@each_shard
@pytest.mark.mpi
def test_loaded_float32_master_becomes_the_correction(shard, world):
    tree = tree_of(mx.bfloat16, "a")
    state = moments(tree)
    master = tree["a"].astype(mx.float32) * (1 + 2.0**-11)
    state["a"]["master"] = master
    optimizer = with_state(world, tree, state, shard=shard, master_dtype="24bit")
    full = optimizer.gather_state()["a"]
    assert "master" not in full
    assert mx.min(mx.abs(full["correction"].astype(mx.int32))).item() > 0


@each_shard
@pytest.mark.mpi
def test_moment_that_does_not_fit_is_refused_by_its_own_name(shard, world):
    tree = tree_of()
    optimizer = with_state(world, tree, moments(tree), shard=shard)
    before = optimizer.gather_state()
    codes = {"codes": mx.zeros((65, 64), mx.int8), "scales": mx.zeros(64)}
    for moment, message in [
        (None, r"nothing for a\.m, wanted float32\[65, 64\]"),
        (mx.zeros((64, 64)), r"of a\.m is float32\[64, 64\], wanted float32\[65, 64\]"),
        (codes, r"no codes and scales of 65 blocks for a\.m"),
    ]:
        state = moments(tree)
        state["a"]["m"] = moment
        if moment is None:
            del state["a"]["m"]
        with pytest.raises(mlxdist.MismatchError, match=message):
            optimizer.load_state(state)
        assert_same_bits(optimizer.gather_state(), before)


# -- pure conversions


def test_pairs_are_the_moments_that_have_both_parts():
    keys = ["m.codes", "v.scales", "v.codes", "u.scales", "v", '"a.codes"']
    assert pairs_of(keys) == {"v": ("v.codes", "v.scales")}


def test_kinds_are_those_of_the_codes_dtypes():
    dtypes = {"m.codes": "int8", "m.scales": "float32"}
    dtypes |= {"v.codes": "uint8", "v.scales": "float32", "n": "float32"}
    assert kinds(dtypes) == {"m": "signed", "v": "root"}


def test_quantized_values_widen_to_the_same_shape():
    array = mx.random.normal((2, 64), key=mx.random.key(3))
    values = quantized({"m": array, "n": mx.zeros(3)}, {"m": "signed"})
    assert list(values) == ["n", "m.codes", "m.scales"]
    back = widened(values, (2, 64))
    assert list(back) == ["n", "m"]
    assert mx.max(mx.abs(back["m"] - array)).item() < 0.02
    assert list(widened(values, (2, 64), without={"m": "signed"})) == list(values)


def test_moments_kept_in_another_way_are_widened():
    """As Adam's v is, where Adamax wants its own."""
    array = mx.square(mx.random.normal((2, 64), key=mx.random.key(3)))
    values = quantized({"v": array}, {"v": "root"})
    back = widened(values, (2, 64), without={"v": "signed"})
    assert mx.max(mx.abs(back["v"] - array)).item() < 0.05


def test_quantized_leaves_what_has_no_whole_blocks():
    values = {"m": mx.zeros(65)}
    assert quantized(values, {"m": "signed"}) == values
