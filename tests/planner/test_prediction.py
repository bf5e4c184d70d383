"""planner/prediction: which strategy is chosen, and why."""

import pytest

from mlxdist.planner import Link, Model, choose, imbalance, memory, step_time
from tests.support.plans import MB, make_entry, model_of


@pytest.mark.parametrize(
    ("optimizer", "ranks", "available", "strategy", "reason"),
    [
        ("adamw", 4, None, "elements", "saves"),
        ("sgd", 4, None, "elements", "saves"),
        ("muon", 4, None, "tensors", "saves"),
        ("adafactor", 4, None, "replicated", "saves little"),
        ("adamw", 1, None, "replicated", "one rank"),
        ("adamw", 4, 1e3, "elements", "too large"),
        ("adamw", 1, 1e3, "replicated", "too large"),
    ],
)
def test_choose_gives_strategy_and_reason(
    optimizer, ranks, available, strategy, reason
):
    model = model_of(10 * MB, optimizer)
    choice = choose(model, ranks, available)
    assert (choice.strategy, choice.reason) == (strategy, reason)
    assert choice.fits == (reason != "too large")
    assert choice.strategy in model.strategies


def test_choose_with_an_unbalanced_owner_takes_replicated_state_if_it_fits():
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
    assert choose(model, 2).strategy == "tensors"
    choice = choose(model, 12)
    assert (choice.strategy, choice.reason) == ("replicated", "unbalanced")
    assert choice.imbalance == pytest.approx(4, rel=0.1)
    needed = memory(model, 12, "replicated").total
    choice = choose(model, 12, available=needed - 1)
    assert (choice.strategy, choice.reason) == ("tensors", "needed")


def test_choose_checks_the_memory_before_the_saving():
    assert not choose(model_of(MB), 1, available=MB).fits
    model = model_of(MB, "adafactor")  # sharding saves almost nothing
    sharded = memory(model, 4, "tensors").total
    assert sharded < memory(model, 4, "replicated").total
    choice = choose(model, 4, available=sharded)
    assert (choice.strategy, choice.fits) == ("tensors", True)
