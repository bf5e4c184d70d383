"""ShardedSampler in the loops that people write, and what its batches index."""

import itertools
import queue
import threading

import mlx.core as mx
import numpy as np
import pytest

from tests.support.samplers import make_sampler, sampler_position, take


@pytest.mark.parametrize("order", [True, False])
def test_state_dict_of_the_last_batch_resumes_with_the_next_epoch(order):
    sampler = make_sampler(20, shuffle=order, batch_size=4)
    for _batch in sampler:
        state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0) == sampler_position(sampler)
    expected = [batch.tolist() for batch in sampler]
    sampler.load_state_dict(state)
    assert [batch.tolist() for batch in sampler] == expected


def test_load_state_dict_of_an_older_version_at_the_end_of_an_epoch_starts_the_next():
    sampler = make_sampler(20, batch_size=4)
    list(sampler)
    expected = [batch.tolist() for batch in sampler]
    sampler.load_state_dict({**sampler.state_dict(), "epoch": 0, "position": 20})
    assert sampler_position(sampler) == (1, 0)
    assert [batch.tolist() for batch in sampler] == expected


# Loops that take the batches of an epoch without asking for one more.
LOOPS = {
    "zip": lambda s: [batch for _, batch in zip(range(len(s)), s, strict=False)],
    "islice": lambda s: list(itertools.islice(s, len(s))),
    "next": lambda s: [next(batches) for batches in [iter(s)] for _ in range(len(s))],
    "next of iter": lambda s: [next(iter(s)) for _ in range(len(s))],
    "break": lambda s: take([s], len(s)),
    "prefetch": lambda s: prefetch(s, len(s)),
    "for": list,
}


def prefetch(sampler, count):
    """Return the batches that a thread takes from the sampler, as data loaders do."""
    batches = queue.Queue(maxsize=2)

    def fill():
        for batch in itertools.islice(sampler, count):
            batches.put(batch)

    thread = threading.Thread(target=fill)
    thread.start()
    taken = [batches.get(timeout=60) for _ in range(count)]
    thread.join()
    return taken


def integers(batches):
    return np.concatenate([np.asarray(batch).reshape(-1) for batch in batches]).tolist()


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("n", [20, 21, 3])
def test_sampler_epochs_are_whole_in_a_loop_that_counts_batches(name, n):
    expected = make_sampler(n, batch_size=4)
    counted = make_sampler(n, batch_size=4)
    for epoch in range(3):
        assert counted.epoch == epoch
        assert integers(LOOPS[name](counted)) == integers(list(expected))
    assert counted.state_dict() == expected.state_dict()


def test_sampler_of_no_examples_has_empty_epochs():
    sampler = make_sampler(0)
    assert [list(sampler) for _ in range(2)] == [[], []]
    assert sampler_position(sampler) == (2, 0)
    resumed = make_sampler(0)
    resumed.load_state_dict(sampler.state_dict())
    assert sampler_position(resumed) == (2, 0)


def test_sampler_finished_pass_ends_though_the_next_has_begun():
    """A thread that prefetches may ask for one more when the next epoch has begun."""
    sampler = make_sampler(8, batch_size=4)
    first = iter(sampler)
    for _ in range(2):
        next(first)
    second = iter(sampler)
    next(second)
    assert list(first) == []
    assert len(list(second)) == 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_sampler_batch_indexes_arrays_of_mlx_and_numpy_and_lists(shuffle):
    rows = np.arange(18, dtype=np.float32).reshape(9, 2)
    texts = [f"text {i}" for i in range(9)]
    sampler = make_sampler(9, shuffle=shuffle, rank=1, size=2, batch_size=2)
    for batch in sampler:
        indices = batch.tolist()
        assert batch.dtype == mx.int64
        assert batch.shape == (len(indices),)
        assert mx.array(rows)[batch].tolist() == rows[indices].tolist()
        assert mx.array(rows)[batch, 0].tolist() == rows[indices, 0].tolist()
        assert rows[batch].tolist() == rows[indices].tolist()
        assert mx.take(mx.array(rows), batch, axis=0).shape == (len(indices), 2)
        assert [texts[i] for i in batch] == [texts[i] for i in indices]
        assert [dict(enumerate(texts))[i] for i in batch] == [texts[i] for i in indices]


def test_sampler_empty_batch_indexes_arrays():
    batch = next(iter(make_sampler(1, rank=1, size=2, batch_size=4)))
    assert len(batch) == 0
    assert mx.zeros((3, 2))[batch].shape == np.zeros((3, 2))[batch].shape == (0, 2)
    assert list(batch) == []
