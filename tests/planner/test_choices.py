"""planner/choices: what is listed, in which order, and what is recommended."""

import pytest

from mlxdist.layout.memory import MemoryOptions
from mlxdist.planner import Link, Model, imbalance, list_choices, recommend, step_time
from tests.support.plans import MB, make_entry, model_of

GB = 10**9
MASTERS = MemoryOptions(master_dtype="float32")


def choices_of(
    elements=100 * MB, ranks=2, optimizer="adamw", dtype="bfloat16", options=MASTERS
):
    return list_choices(model_of(elements, optimizer, dtype), ranks, options)


def test_choices_are_listed_by_cost_and_each_needs_less_memory():
    listed = choices_of()
    assert [choice.changes for choice in listed] == [
        (),
        ("shard",),
        ("shard", "minimize"),
        ("shard", "minimize", "24bit"),
        ("shard", "minimize", "int8"),
        ("shard", "minimize", "24bit", "int8"),
        ("shard", "minimize", "24bit", "int8", "means"),
        ("shard", "minimize", "24bit", "int8", "unchecked"),
    ]
    totals = [choice.memory.total for choice in listed]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(
    ("ranks", "optimizer", "dtype", "options", "absent"),
    [
        (1, "adamw", "bfloat16", MASTERS, "shard"),
        (2, "adamw", "float32", MASTERS, "24bit"),
        (2, "adamw", "bfloat16", MemoryOptions(), "24bit"),
        (2, "muon", "bfloat16", MASTERS, "int8"),
        (2, "adamw", "bfloat16", MASTERS, "sharded sums"),
        (1, "adamw", "bfloat16", MASTERS, "means"),
        (2, "adamw", "float32", MemoryOptions(state_dtype="int8"), "means"),
        (2, "adamw", "bfloat16", MemoryOptions(needs_norm=True), "unchecked"),
        (2, "adamw", "bfloat16", MemoryOptions(minimize=True), "minimize"),
        (2, "adamw", "bfloat16", MemoryOptions(state_dtype="int8"), "int8"),
    ],
)
def test_choices_that_change_nothing_are_not_listed(
    ranks, optimizer, dtype, options, absent
):
    listed = choices_of(ranks=ranks, optimizer=optimizer, dtype=dtype, options=options)
    assert listed
    assert all(absent not in choice.changes for choice in listed)


def test_choices_with_accumulation_may_shard_the_sums():
    listed = choices_of(ranks=4, options=MemoryOptions(accumulate=8))
    (choice,) = [
        c for c in listed if c.changes == ("shard", "minimize", "sharded sums")
    ]
    assert choice.options.accumulate_sharded
    assert choice.memory["gradient sums"] == pytest.approx(0.1 * GB, rel=0.01)
    assert choice.memory["mean gradients"] == choice.memory["gradient sums"]


@pytest.mark.parametrize(
    ("available", "changes"),
    [
        (9 * GB, ()),
        (1.3 * GB, ("shard",)),
        (0.95 * GB, ("shard", "minimize", "24bit")),
        (0.5 * GB, ("shard", "minimize", "24bit", "int8", "unchecked")),
        (0.1 * GB, None),
        (None, ("shard", "minimize")),
    ],
)
def test_recommend_takes_the_cheapest_that_fits(available, changes):
    choice = recommend(choices_of(), available)
    assert (choice and choice.changes) == changes
    assert choice is None or choice.fits(available)


def test_choices_shard_an_unbalanced_model_last():
    """One embedding is a third of the model, and its owner sends four shares of 12."""
    entries = [make_entry("embed", (50, MB), "bfloat16")]
    entries += [make_entry(f"{i}", (1000, 1000), "bfloat16") for i in range(100)]
    model = Model(tuple(entries), "muon", MB)
    assert imbalance(model, 2, "tensors") == 1
    assert imbalance(model, 12, "tensors") == pytest.approx(4, rel=0.1)
    link = Link("x", 1e9, 0.0)
    seconds = {
        strategy: step_time(model, 12, strategy, link, local=0.0).communication
        for strategy in model.strategies
    }
    assert seconds["tensors"] == pytest.approx(4 * seconds["replicated"], rel=0.1)
    assert list_choices(model, 2, MemoryOptions())[1].changes == ("shard",)
    listed = list_choices(model, 12, MemoryOptions())
    assert listed[1].changes == ("minimize",)
    assert recommend(listed, None).strategy == "replicated"
    assert listed[-1].strategy == "tensors"
    assert listed[-1].imbalance == pytest.approx(4, rel=0.1)
