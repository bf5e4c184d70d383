"""layout/memory: the terms of a rank's memory, against plain arithmetic."""

import pytest

from mlxdist.layout import make_plan
from mlxdist.layout.memory import (
    MemoryOptions,
    largest_memory,
    rank_memory,
    state_bytes,
)
from tests.support.plans import make_entry

SIZE = 128 * 64  # elements of the matrix, which 2 and 4 ranks divide
VECTOR = 30
MATRIX = make_entry("w", (128, 64), "bfloat16")
BIAS = make_entry("b", (VECTOR,), "bfloat16")


def memory_of(options, *, ranks=2, strategy="elements", kind="adamw", frozen=0):
    """Return the memory of rank 0, which has half of each of two buckets."""
    plan = make_plan((MATRIX, BIAS), ranks, strategy=strategy, bucket_size=1)
    return rank_memory(
        plan,
        0,
        options,
        lambda entry, elements: state_bytes(entry, elements, kind, options),
        frozen=frozen,
    )


def terms(memory):
    return {term.name: term.nbytes for term in memory.terms}


BUCKETS = 2 * (SIZE + VECTOR)  # all of them: they are smaller than 16 MiB
PARAMETERS = {"parameters": 2 * (SIZE + VECTOR)}
HALF = (SIZE + VECTOR) // 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            MemoryOptions(),
            {
                "gradients": 2 * (SIZE + VECTOR),
                "mean gradients": 2 * HALF,
                "state": 4 * HALF,
            },
        ),
        (MemoryOptions(minimize=True), {"mean gradients": 2 * HALF, "state": 4 * HALF}),
        (
            MemoryOptions(minimize=True, rounds_means=False),
            {"mean gradients": 4 * HALF, "state": 4 * HALF},
        ),
        *(
            (
                MemoryOptions(minimize=True, master_dtype="24bit", mean_dtype=mean),
                {
                    "mean gradients": item * HALF,
                    "state": 8 * HALF,
                    "master weights": HALF,
                },
            )
            for mean, item in {None: 4, "float32": 4, "float16": 2}.items()
        ),
        (MemoryOptions(minimize=True, check_finite=False), {"state": 4 * HALF}),
        (
            MemoryOptions(check_finite=False),
            {"gradients": 2 * (SIZE + VECTOR), "state": 4 * HALF},
        ),
        (
            MemoryOptions(minimize=True, check_finite=False, master_dtype="float32"),
            {"state": 8 * HALF, "master weights": 4 * HALF},
        ),
        (
            MemoryOptions(minimize=True, check_finite=False, master_dtype="24bit"),
            {"state": 8 * HALF, "master weights": HALF},
        ),
        (
            MemoryOptions(minimize=True, check_finite=False, state_dtype="int8"),
            {"state": 2 * (SIZE // 2 + 4 * SIZE // 128) + 4 * VECTOR // 2},
        ),
        (
            MemoryOptions(minimize=True, state_dtype="int8"),
            {
                "mean gradients": 4 * HALF,
                "state": 2 * (SIZE // 2 + 4 * SIZE // 128) + 4 * VECTOR // 2,
            },
        ),
        (
            MemoryOptions(minimize=True, accumulate=4),
            {"gradient sums": 4 * (SIZE + VECTOR), "state": 4 * HALF},
        ),
        (
            MemoryOptions(minimize=True, accumulate=4, pairwise=True),
            {"gradient sums": 3 * 4 * (SIZE + VECTOR), "state": 4 * HALF},
        ),
        (
            MemoryOptions(minimize=True, accumulate=4, accumulate_sharded=True),
            {"gradient sums": 4 * HALF, "mean gradients": 4 * HALF, "state": 4 * HALF},
        ),
        (
            MemoryOptions(minimize=True, check_finite=False, ema=True),
            {"state": 4 * HALF, "EMA weights": 4 * HALF},
        ),
    ],
)
def test_rank_memory_has_each_term_of_its_options(options, expected):
    memory = terms(memory_of(options))
    assert memory.pop("buckets") == BUCKETS * (1 + (not options.check_finite))
    assert memory == {**PARAMETERS, **expected}


def test_gradients_of_one_rank_are_not_widened():
    options = MemoryOptions(minimize=True, needs_norm=True, state_dtype="int8")
    memory = terms(memory_of(options, ranks=1))
    assert memory["mean gradients"] == 2 * (SIZE + VECTOR)


def test_rank_memory_of_replicated_state_is_whole():
    memory = memory_of(MemoryOptions(minimize=True), strategy="replicated")
    assert memory["mean gradients"] == 4 * (SIZE + VECTOR)
    assert memory["state"] == 4 * (SIZE + VECTOR)
    assert all(term.whole == term.nbytes for term in memory.terms)


def test_rank_memory_of_one_rank_has_a_bucket_and_no_means():
    memory = memory_of(MemoryOptions(), ranks=1)
    assert terms(memory) == {
        **PARAMETERS,
        "gradients": 2 * (SIZE + VECTOR),
        "state": 4 * (SIZE + VECTOR),
        "buckets": 2 * SIZE,  # the largest one
    }
    assert memory.total == 8 * (SIZE + VECTOR) + 2 * SIZE


def test_rank_memory_of_one_rank_keeps_gradients_that_are_clipped():
    clipped = MemoryOptions(minimize=True, needs_norm=True, scales_gradients=True)
    memory = memory_of(clipped, ranks=1)
    assert memory["mean gradients"] == 2 * (SIZE + VECTOR)
    assert memory["buckets"] == 2 * SIZE
    streamed = memory_of(MemoryOptions(minimize=True), ranks=1)
    assert (streamed["mean gradients"], streamed["buckets"]) == (0, 4 * SIZE)


@pytest.mark.parametrize(
    ("options", "means"),
    [
        ({}, 0),
        ({"minimize": True}, 24),
        ({"overlaps": True}, 24),
        ({"pairwise": True}, 24),
        ({"needs_norm": True}, 24),
    ],
)
def test_rank_memory_has_no_means_of_gradients_that_were_checked(options, means):
    plan = make_plan([make_entry("w", (6,))], 3, strategy="replicated", bucket_size=9)
    in_turn = MemoryOptions(**{"overlaps": False, **options})
    memory = rank_memory(plan, 0, in_turn, lambda entry, elements: 0)
    assert memory["mean gradients"] == means


def test_rank_memory_counts_frozen_parameters_and_the_process():
    assert memory_of(MemoryOptions(), frozen=5)["frozen parameters"] == 5
    assert memory_of(MemoryOptions())["frozen parameters"] == 0


def test_largest_memory_is_of_the_owner_of_the_largest_tensor():
    plan = make_plan((MATRIX, BIAS), 2, strategy="tensors", bucket_size=1)
    memory = largest_memory(plan, MemoryOptions(), lambda entry, elements: elements)
    assert memory["state"] == SIZE


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((20, 30), 2 * 30), ((20, 30, 40), 80), ((1,) * 40, 17), ((8,) * 9, 24)],
)
def test_rank_memory_of_buckets_is_what_may_be_in_flight(sizes, expected):
    """In MiB: two of the largest, or 16 and one more, and no more than there is."""
    entries = [make_entry(f"{i}", (n, 2**18)) for i, n in enumerate(sizes)]
    plan = make_plan(entries, 2, strategy="elements", bucket_size=1)
    memory = rank_memory(plan, 0, MemoryOptions(), lambda entry, elements: 0)
    assert memory["buckets"] == min(expected, sum(sizes)) * 2**20
    streamed = MemoryOptions(check_finite=False)
    both = rank_memory(plan, 0, streamed, lambda entry, elements: 0)
    assert both["buckets"] == 2 * memory["buckets"]
    in_turn = MemoryOptions(minimize=True, overlaps=False)
    less = rank_memory(plan, 0, in_turn, lambda entry, elements: 0)
    assert less["buckets"] <= memory["buckets"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("adafactor", (128 + 64) * 2), ("muon", SIZE * 2), ("sgd", SIZE * 2)],
)
def test_state_bytes_of_other_optimizers(kind, expected):
    assert state_bytes(MATRIX, SIZE, kind, MemoryOptions()) == expected


def test_state_bytes_of_a_named_parameter_stay_in_full():
    options = MemoryOptions(state_dtype="int8", float32_state=("w",))
    assert state_bytes(MATRIX, SIZE, "adamw", options) == 4 * SIZE
