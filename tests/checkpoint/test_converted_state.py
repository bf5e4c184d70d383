"""Checkpoints of state in 8 bits and of 24-bit masters, and their conversion."""

import mlx.core as mx
import pytest
from mlx.utils import tree_unflatten

import mlxdist
from mlxdist.arrays import float24
from mlxdist.checkpoint import mlx_files
from mlxdist.checkpoint.manifest import SavedArray
from mlxdist.checkpoint.state_targets import alternatives, pair_problems
from mlxdist.checkpoint.verify import kept, list_checkpoints, verify
from tests.support.eight_bits import moments, moments_of, rounded, tree_of
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_shard,
    shard_modes,
)

OPTIONS = {"bucket_size": 2**14}
each_other_shard = pytest.mark.parametrize("other", shard_modes("AdamW"))


def make_run(world, tree=None, **options):
    """Return new parameters and an optimizer of them; of 16 bits with masters."""
    dtype = mx.bfloat16 if "master_dtype" in options else mx.float32
    tree = tree or tree_of(dtype)
    optimizer = distributed(world, **OPTIONS, **options)
    optimizer.init(tree)
    return tree, optimizer


def save(folder, world, **options):
    """Save a run after it loaded moments, and return its full state."""
    tree, optimizer = make_run(world, **options)
    state = moments(tree)
    optimizer.load_state(state)
    mlxdist.save_checkpoint(folder, 3, tree, optimizer)
    return state, optimizer.gather_state()


def load(folder, world, tree=None, **options):
    """Load a run into another one, whose state is another before."""
    tree, optimizer = make_run(world, tree, **options)
    optimizer.load_state(moments(tree, seed=5))
    mlxdist.load_checkpoint(folder, tree, optimizer)
    return tree, optimizer


@each_shard
@each_other_shard
@pytest.mark.mpi
def test_state_in_8_bits_loads_on_other_ranks_and_shards(
    other, shard, world, shared_folder
):
    _, full = save(shared_folder, world, shard=shard, state_dtype="int8")
    for ranks in {1, world.size, max(1, world.size - 1)}:
        part = world.split(world.rank // ranks)
        if part.size != ranks:
            continue
        _, optimizer = load(shared_folder, part, shard=other, state_dtype="int8")
        assert_same_bits(optimizer.gather_state(), full)


@pytest.mark.mpi(min_size=4)
def test_state_in_8_bits_saved_on_4_ranks_loads_on_3_and_back(world, shared_folder):
    _, full = save(shared_folder, world, shard="elements", state_dtype="int8")
    part, folder = world.split(world.rank // 3), shared_folder / f"{world.rank // 3}"
    tree, optimizer = load(shared_folder, part, shard="elements", state_dtype="int8")
    assert_same_bits(optimizer.gather_state(), full)
    mlxdist.save_checkpoint(folder, 4, tree, optimizer)
    world.barrier()
    _, back = load(shared_folder / "0", world, shard="elements", state_dtype="int8")
    assert_same_bits(back.gather_state(), full)


@each_shard
@pytest.mark.mpi
def test_float32_state_loads_into_8_bits(shard, world, shared_folder):
    state, _ = save(shared_folder, world, shard=shard)
    _, optimizer = load(shared_folder, world, shard=shard, state_dtype="int8")
    assert_same_bits(moments_of(optimizer.gather_state()), moments_of(rounded(state)))


@each_shard
@pytest.mark.mpi
def test_state_in_8_bits_loads_into_float32(shard, world, shared_folder):
    """float32 slices begin and end inside of blocks."""
    state, _ = save(shared_folder, world, shard=shard, state_dtype="int8")
    _, optimizer = load(shared_folder, world, shard=shard)
    assert_same_bits(moments_of(optimizer.gather_state()), moments_of(rounded(state)))


def with_masters(folder, world, shard, option):
    """Save a run after a step; return its parameters and their masters."""
    tree, optimizer = make_run(world, shard=shard, master_dtype=option)
    tree = optimizer.apply_gradients(tree, tree)
    mlxdist.save_checkpoint(folder, 1, tree, optimizer)
    return tree, masters_of(tree, optimizer)


def masters_of(tree, optimizer):
    state = optimizer.gather_state()
    return {
        name: state[name]["master"]
        if "master" in state[name]
        else float24.join(array, state[name]["correction"])
        for name, array in tree.items()
    }


@each_shard
@pytest.mark.parametrize("to_24_bits", [True, False])
@pytest.mark.mpi
def test_masters_become_corrections_and_back(to_24_bits, shard, world, shared_folder):
    options = (mx.float32, "24bit") if to_24_bits else ("24bit", mx.float32)
    tree, masters = with_masters(shared_folder, world, shard, options[0])
    loaded, optimizer = load(shared_folder, world, shard=shard, master_dtype=options[1])
    assert_same_bits(loaded, tree)
    for name, master in masters_of(loaded, optimizer).items():
        error = mx.max(mx.abs(master - masters[name]) / mx.abs(masters[name])).item()
        assert error <= (2.0**-15 if to_24_bits else 0), name
        assert mx.any(master != loaded[name].astype(mx.float32)).item(), name


@each_shard
@pytest.mark.mpi
def test_load_without_masters_drops_the_corrections(shard, world, shared_folder):
    """They would be of the parameters from before."""
    options = {"shard": shard, "state_dtype": "int8"}
    tree, plain = make_run(world, tree_of(mx.bfloat16, "ac"), **options)
    mlxdist.save_checkpoint(shared_folder, 1, tree, plain)
    own, optimizer = make_run(world, dict(tree), master_dtype="24bit", **options)
    for state in optimizer.state.values():
        if isinstance(state, dict) and "correction" in state:
            state["correction"] = state["correction"] + 5
    mlxdist.load_checkpoint(shared_folder, own, optimizer)
    assert not mx.any(optimizer.gather_state()["a"]["correction"]).item()


@each_shard
@pytest.mark.mpi
def test_trained_state_in_8_bits_with_masters_of_24_goes_on(
    shard, world, shared_folder
):
    options = {"shard": shard, "state_dtype": "int8", "master_dtype": "24bit"}
    tree, optimizer = make_run(world, **options)
    tree = apply_steps(optimizer, tree, range(2))
    mlxdist.save_checkpoint(shared_folder, 2, tree, optimizer)
    tree = apply_steps(optimizer, tree, range(2, 4))
    for part in (world, world.split(world.rank)):
        other, resumed = load(shared_folder, part, **options)
        other = apply_steps(resumed, other, range(2, 4))
        assert_same_bits(other, tree)
        assert_same_bits(resumed.gather_state(), optimizer.gather_state())


@pytest.mark.mpi
def test_background_save_of_8_bits_loads(world, shared_folder):
    tree, optimizer = make_run(world, shard=True, state_dtype="int8")
    optimizer.load_state(moments(tree))
    mlxdist.save_checkpoint(shared_folder, 1, tree, optimizer, background=True)
    full = optimizer.gather_state()
    _, other = load(shared_folder, world, shard=True, state_dtype="int8")
    assert_same_bits(other.gather_state(), full)


# -- damaged checkpoints


def break_state(monkeypatch, change):
    """Let the ranks save another state than the optimizer's."""
    from mlxdist.optim.resumable_state import ResumableState

    arrays = ResumableState.arrays

    def broken(self):
        return {path: change(dict(keys)) for path, keys in arrays(self).items()}

    monkeypatch.setattr(ResumableState, "arrays", broken)


def without_scales(keys):
    keys.pop("m.scales", None)
    return keys


def with_fewer_scales(keys):
    if "m.scales" in keys:
        array = mx.zeros(64)
        keys["m.scales"] = keys["m.scales"]._replace(
            array=array, shape=(64,), start=0, stop=64
        )
    return keys


@each_shard
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_scales, "the state m of [ac] has codes and no scales"),
        (with_fewer_scales, r"has 6?[58]\d? blocks of codes, and \[64\] scales"),
    ],
)
@pytest.mark.mpi
def test_damaged_blocks_are_refused_on_all_ranks(
    change, message, shard, world, shared_folder, monkeypatch
):
    with monkeypatch.context() as patch:
        break_state(patch, change)
        save(shared_folder, world, shard=shard, state_dtype="int8")
    for options in ({"state_dtype": "int8"}, {}):
        tree, optimizer = make_run(world, shard=shard, **options)
        before = optimizer.gather_state()
        with pytest.raises(mlxdist.CheckpointError, match=message):
            mlxdist.load_checkpoint(shared_folder, tree, optimizer)
        assert_same_bits(optimizer.gather_state(), before)
    (info,) = list_checkpoints(shared_folder)
    problems = verify(shared_folder, info, lambda _: None)
    assert any("the state m of a has" in problem for problem in problems)


# -- plain files


@each_shard
@pytest.mark.mpi
def test_consolidated_moments_are_float32_and_load_in_8_bits(
    shard, world, shared_folder, monkeypatch
):
    monkeypatch.setattr(mlx_files, "BLOCK", 2**11)  # several for a tensor
    state, full = save(shared_folder / "run", world, shard=shard, state_dtype="int8")
    plain, wanted = shared_folder / "plain", rounded(state)
    if world.rank == 0:
        (info,) = list_checkpoints(shared_folder / "run")
        assert not list(verify(shared_folder / "run", info, lambda _: None))
        assert kept(info.manifest) == ["8-bit moments"]
        mlx_files.consolidate(shared_folder / "run", info.save, plain, lambda _: None)
    world.barrier()
    arrays = mx.load(str(plain / "optimizer.safetensors"))
    assert_same_bits(moments_of(tree_unflatten(list(arrays.items()))), moments_of(full))
    for options in ({"state_dtype": "int8"}, {}):
        _, optimizer = load(plain, world, shard=shard, **options)
        assert_same_bits(moments_of(optimizer.gather_state()), moments_of(wanted))


@pytest.mark.mpi
def test_plain_moment_of_another_shape_is_refused_by_its_name(world, shared_folder):
    tree = tree_of(names="a")
    if world.rank == 0:
        state = {"a.m": mx.zeros((64, 64))}
        for name, arrays in (("model", tree), ("optimizer", state)):
            mx.save_safetensors(str(shared_folder / f"{name}.safetensors"), arrays)
    world.barrier()
    with pytest.raises(mlxdist.CheckpointError, match=r"wanted float32\[65, 64\]"):
        load(shared_folder, world, tree, state_dtype="int8")


@pytest.mark.mpi
def test_corrections_go_through_plain_files(world, shared_folder):
    run, plain = shared_folder / "run", shared_folder / "plain"
    _, masters = with_masters(run, world, True, "24bit")
    if world.rank == 0:
        (info,) = list_checkpoints(run)
        assert kept(info.manifest) == ["24-bit masters"]
        mlx_files.consolidate(run, info.save, plain, lambda _: None)
    world.barrier()
    for option in ("24bit", mx.float32):
        found = masters_of(*load(plain, world, shard=True, master_dtype=option))
        assert_same_bits(found, masters)


# -- pure


def saved(key, dtype, *shape):
    return SavedArray("optimizer", "a", key, dtype, shape)


def test_pair_problems_name_what_is_missing_or_of_another_size():
    codes, scales = saved("m.codes", "int8", 3, 64), saved("m.scales", "float32", 3)
    assert list(pair_problems([codes, scales])) == []
    assert "no scales" in next(pair_problems([codes]))
    assert "no codes" in next(pair_problems([scales]))
    fewer = saved("m.scales", "float32", 2)
    assert "3 blocks of codes, and [2] scales" in next(pair_problems([codes, fewer]))


def test_pair_problems_leave_a_users_own_codes_alone():
    own = [saved("codes", "int8", 64), saved("x.codes", "float32", 3, 64)]
    assert list(pair_problems(own)) == []


def test_alternatives_of_a_moment_are_its_parts_and_back():
    assert alternatives("m") == ("m.codes", "m.scales")
    assert alternatives("m.codes") == alternatives("m.scales") == ("m",)
    assert alternatives("master") == ("correction",)
    assert alternatives("correction") == ("master",)
