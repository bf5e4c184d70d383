"""planner/memory_model: models, and their memory against plain arithmetic."""

from dataclasses import replace

import pytest

from mlxdist.layout.memory import MemoryOptions
from mlxdist.layout.state_blocks import BLOCK
from mlxdist.planner import Model, memory, model_of_size
from tests.support.plans import MB, make_entry, model_of


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_memory_of_adamw_is_two_states_divided_by_the_ranks(ranks):
    model = model_of(25_600_000)
    replicated = memory(model, ranks, "replicated")
    assert (replicated["parameters"], replicated["gradients"]) == (102_400_000,) * 2
    assert replicated["state"] == 204_800_000
    sharded = memory(model, ranks, "elements")
    assert sharded["state"] == pytest.approx(204_800_000 / ranks, rel=0.001)
    assert sharded["buckets"] > 0
    by_tensor = memory(model, ranks, "tensors")["state"]
    assert 204_800_000 / ranks <= by_tensor <= 204_800_000 / ranks * 4 / 3 + 800_000


def test_memory_counts_frozen_parameters():
    model = model_of(25_600_000)
    frozen = replace(model, frozen_bytes=1000)
    trained, both = (memory(m, 2, "elements").total for m in (model, frozen))
    assert both - trained == 1000


def test_plan_of_blocks_is_not_that_of_elements():
    model = Model((make_entry("w", (10, BLOCK)),), "adamw", MB)
    plans = [model.plan(3, "elements", block=block) for block in (1, BLOCK)]
    ends = [{stop % BLOCK for _, stop in plan.shard(0).values()} for plan in plans]
    assert ends[0] != ends[1] == {0}


def test_memory_of_64_ranks_and_70e9_parameters_is_planned_in_time():
    model = model_of_size(70 * 10**9, "bfloat16", "adamw", bucket_size=32 * 2**20)
    expected = 70e9 * 4 / 64
    assert memory(model, 64, "elements")["state"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("elements", [1, 255, 256, 5_000, 2_000_000, 8 * 10**9])
def test_model_of_size_has_that_many_parameters(elements):
    model = model_of_size(elements, "bfloat16", "adamw", bucket_size=MB)
    assert model.elements == elements
    state = memory(model, 1, "replicated", MemoryOptions(state_dtype="int8"))["state"]
    if elements >= 2_000_000:  # its matrices have whole blocks
        assert state == pytest.approx(2.125 * elements, rel=0.02)


def test_model_of_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'none'; choose sgd, "):
        model_of(MB, optimizer="none")


def test_model_of_muon_has_no_8_bit_state():
    model_of(MB, "lion").require_known_state()
    with pytest.raises(ValueError, match=r"int8 is for .*adamw.*, and not for muon"):
        model_of(MB, "muon").require_known_state()
