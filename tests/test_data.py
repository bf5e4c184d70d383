"""ShardedSampler: coverage, even batches, the same order for any N, resuming."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxdist.data import ShardedSampler, epoch_order
from tests.support.samplers import FakeWorld, take


def samplers(n, size, **options):
    return [ShardedSampler(n, world=FakeWorld(r, size), **options) for r in range(size)]


def run_epoch(ranks):
    """Return the global batches of one pass, each as a list of the ranks' parts."""
    return list(zip(*[list(sampler) for sampler in ranks], strict=True))


def examples(global_batches):
    return [int(i) for parts in global_batches for part in parts for i in part]


sizes = st.integers(1, 8)
counts = st.integers(0, 200)
batch_sizes = st.integers(1, 9)
seeds = st.integers(0, 2**70)


@given(counts, sizes, batch_sizes, seeds, st.booleans())
@example(n=1, size=8, batch_size=9, seed=0, shuffle=True)
@example(n=17, size=4, batch_size=4, seed=0, shuffle=True)
@example(n=20, size=4, batch_size=4, seed=0, shuffle=True)
def test_sampler_epoch_has_every_example_once_and_equal_batch_counts(
    n, size, batch_size, seed, shuffle
):
    ranks = samplers(n, size, seed=seed, shuffle=shuffle, batch_size=batch_size)
    for epoch in range(3):
        expected = -(-n // (batch_size * size))
        if 0 < n % (batch_size * size) < size and expected > 1:
            expected -= 1  # its rest would leave ranks without an example
        assert [len(sampler) for sampler in ranks] == [expected] * size
        assert {sampler.epoch for sampler in ranks} == {epoch}
        batches = run_epoch(ranks)  # strict zip: the same number on every rank
        assert len(batches) == expected
        assert sorted(examples(batches)) == list(range(n))


@given(counts, sizes, batch_sizes)
def test_sampler_only_the_last_batch_is_short_and_it_is_split_evenly(
    n, size, batch_size
):
    batches = run_epoch(samplers(n, size, batch_size=batch_size))
    for parts in batches[:-1]:
        assert {len(part) for part in parts} == {batch_size}
    for parts in batches[-1:]:
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= batch_size + (len(batches) * batch_size * size < n)
        assert min(lengths) > 0 or n < size
        assert sum(lengths) == n - (len(batches) - 1) * batch_size * size


@given(counts, batch_sizes, seeds, st.booleans())
def test_sampler_global_batches_are_equal_for_any_number_of_ranks(
    n, batch_size, seed, shuffle
):
    global_size = 8 * batch_size
    if n % global_size < 8:  # where some of the ranks would have no example
        n -= n % global_size

    def sets(size):
        ranks = samplers(
            n, size, seed=seed, shuffle=shuffle, batch_size=global_size // size
        )
        return [sorted(examples([parts])) for parts in run_epoch(ranks)]

    assert sets(1) == sets(2) == sets(4) == sets(8)


@given(
    n=counts,
    first=st.tuples(sizes, batch_sizes),
    second=st.tuples(sizes, batch_sizes),
    third=st.tuples(sizes, batch_sizes),
    stops=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    shuffle=st.booleans(),
)
def test_sampler_resumed_with_other_ranks_and_batch_sizes_completes_the_epoch(
    n, first, second, third, stops, shuffle
):
    seen, state = [], None
    for (size, batch_size), stop in zip(
        (first, second, third), (*stops, None), strict=True
    ):
        ranks = samplers(n, size, seed=3, shuffle=shuffle, batch_size=batch_size)
        for sampler in ranks:
            if state is not None:
                sampler.load_state_dict(state)
        seen += examples(run_epoch(ranks) if stop is None else take(ranks, stop))
        states = [sampler.state_dict() for sampler in ranks]
        assert all(s == states[0] for s in states)
        state = json.loads(json.dumps(states[0]))
        if state["epoch"] == 1 or n == 0:  # the epoch is complete
            break
    assert sorted(seen) == list(range(n))
    expected = epoch_order(n, 3, 0).tolist() if shuffle else list(range(n))
    assert seen == expected  # in the order of the epoch: batch by batch, rank by rank


def test_sampler_rest_of_fewer_examples_than_ranks_joins_the_batch_before():
    ranks = samplers(19, 4, batch_size=2, shuffle=False)
    assert [[list(part) for part in parts] for parts in run_epoch(ranks)] == [
        [[0, 1], [2, 3], [4, 5], [6, 7]],
        [[8, 9, 10], [11, 12, 13], [14, 15, 16], [17, 18]],
    ]


def test_state_dict_saved_in_the_loop_resumes_at_the_next_batch():
    def sampler():
        return ShardedSampler(20, world=FakeWorld(1, 2), seed=5, batch_size=3)

    full = sampler()
    batches, next_epoch = ([batch.tolist() for batch in full] for _ in range(2))
    for k in range(len(batches)):
        saved = sampler()
        for i, _batch in enumerate(saved):
            if i == k:  # the body of the loop has trained on batch k
                state = saved.state_dict()
                break
        resumed = sampler()
        resumed.load_state_dict(state)
        rest = batches[k + 1 :] or next_epoch
        assert len(resumed) == len(rest)
        assert [batch.tolist() for batch in resumed] == rest
        assert resumed.epoch == (1 if batches[k + 1 :] else 2)


def test_sampler_next_pass_after_break_continues_the_epoch():
    sampler = ShardedSampler(10, world=FakeWorld(0, 1), batch_size=3)
    seen = []
    for batch in sampler:
        seen += batch.tolist()
        if len(seen) == 6:
            break
    for batch in sampler:
        seen += batch.tolist()
    assert sorted(seen) == list(range(10))


def test_sampler_outdated_pass_raises():
    sampler = ShardedSampler(10, world=FakeWorld(0, 1))
    first = iter(sampler)
    next(first)
    second = iter(sampler)
    next(second)
    with pytest.raises(RuntimeError, match="no longer current"):
        next(first)
    sampler.load_state_dict(sampler.state_dict())
    with pytest.raises(RuntimeError, match="no longer current"):
        next(second)


def test_sampler_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        sampler = ShardedSampler(100, world=FakeWorld(0, 1), seed=seed, batch_size=100)
        for _ in range(epoch):
            list(sampler)
        return next(iter(sampler)).tolist()

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(o) for o in orders}) == 6
    assert order(1, 2) == orders[-1]
    assert all(o != list(range(100)) for o in orders)


def test_epoch_order_is_the_same_in_every_version():
    # Checkpoints hold positions in this order: a change would break resumed runs.
    assert epoch_order(12, 0, 0).tolist() == [6, 11, 3, 8, 1, 4, 5, 9, 2, 7, 10, 0]
    assert epoch_order(12, 7, 3).tolist() == [2, 1, 4, 8, 10, 9, 3, 5, 7, 6, 11, 0]


def test_epoch_order_is_uniform():
    # Position of example 0 in 6000 epochs: each of 6 positions about 1000 times.
    positions = [int(np.flatnonzero(epoch_order(6, 1, e) == 0)[0]) for e in range(6000)]
    counts = np.bincount(positions, minlength=6)
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_square < 25.7  # 5 degrees of freedom, p = 0.0001; the seed is fixed


def test_state_dict_of_numpy_arguments_is_json():
    sampler = ShardedSampler(np.int64(5), world=FakeWorld(0, 1), seed=np.int64(1))
    json.dumps(sampler.state_dict())


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "n: found -1, wanted an integer of 0 or more", {"n": -1}),
        (TypeError, "n: found 2.5, wanted", {"n": 2.5}),
        (TypeError, r"n: found \['a', 'a', .*\.\.\.\], wanted", {"n": 99 * ["a"]}),
        (ValueError, "batch_size: found 0, wanted an integer of 1", {"batch_size": 0}),
        (TypeError, "batch_size: found '4', wanted", {"batch_size": "4"}),
        (ValueError, "seed: found -3, wanted an integer of 0", {"seed": -3}),
        (ValueError, "world.rank: found 2 in a world of 2", {"world": FakeWorld(2, 2)}),
        (ValueError, "world.size: found 0, wanted", {"world": FakeWorld(0, 0)}),
    ],
)
def test_sampler_invalid_argument_raises(error, message, options):
    arguments = {"n": 4, "world": FakeWorld(0, 1), **options}
    with pytest.raises(error, match=message):
        ShardedSampler(arguments.pop("n"), **arguments)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "n=11, this sampler has n=10", {"n": 11}),
        (ValueError, "seed=1, this sampler has seed=0", {"seed": 1}),
        (
            ValueError,
            "shuffle=False, this sampler has shuffle=True",
            {"shuffle": False},
        ),
        (ValueError, "found 11, wanted 0 to n=10", {"position": 11}),
        (ValueError, "epoch of the state: found -1", {"epoch": -1}),
        (TypeError, "position of the state: found 1.5", {"position": 1.5}),
        (ValueError, "pass the result of state_dict", {"surprise": 1}),
    ],
)
def test_load_state_dict_of_another_sampler_raises_and_changes_nothing(
    error, message, change
):
    sampler = ShardedSampler(10, world=FakeWorld(0, 1), batch_size=4)
    next(iter(sampler))
    before = sampler.state_dict()
    with pytest.raises(error, match=message):
        sampler.load_state_dict({**before, **change})
    with pytest.raises(ValueError, match="pass the result of state_dict"):
        sampler.load_state_dict({"epoch": 0})
    with pytest.raises(TypeError, match="state is None: pass the result of state_dict"):
        sampler.load_state_dict(None)
    assert sampler.state_dict() == before
