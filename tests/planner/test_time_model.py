"""planner/time_model: against plain arithmetic."""

import pytest

from mlxdist.planner import LINKS, Link, Model, step_time
from tests.support.plans import MB, make_entry, model_of


def test_step_time_communication_is_bytes_over_bandwidth_plus_latencies():
    model = model_of(25_600_000)
    link = Link("x", 1e8, 0.0)
    for ranks in (2, 4, 64):
        time = step_time(model, ranks, "elements", link, local=1.0)
        assert time.communication == pytest.approx(2 * (ranks - 1) / ranks * 1.024)
        assert time.longest == pytest.approx(1 + time.communication)
        assert 1 + time.communication / 2 <= time.shortest < time.longest
    slow = step_time(model, 4, "elements", Link("x", 1e8, 1e-3), local=1.0)
    fast = step_time(model, 4, "elements", link, local=1.0)
    latencies = 2 * len(model.plan(4, "elements").buckets) * 3 * 1e-3
    assert slow.communication - fast.communication == pytest.approx(latencies)
    air = Link("x", 1e8, 0.0, shared=True)
    shared = step_time(model, 4, "elements", air, local=1.0)
    assert shared.communication == pytest.approx(8 * fast.communication)


def test_step_time_16_bit_gradients_are_sent_in_16_bits():
    link, model = Link("x", 1e8, 0.0), model_of(25_600_000, dtype="bfloat16")
    sharded = step_time(model, 4, "elements", link, local=0.0).communication
    assert sharded == pytest.approx(2 * 3 / 4 * 0.512)
    replicated = step_time(model, 4, "replicated", link, local=0.0).communication
    assert replicated == sharded


def test_step_time_replicated_state_overlaps_both_phases():
    link, model = Link("x", 1e8, 0.0), model_of(25_600_000)
    times = {s: step_time(model, 2, s, link, local=9.0) for s in model.strategies}
    replicated, sharded = times["replicated"], times["elements"]
    assert replicated.communication == sharded.communication
    assert replicated.overlappable == pytest.approx(2 * sharded.overlappable)


def test_step_time_overlap_is_at_most_the_backward_pass():
    model = model_of(25_600_000)
    time = step_time(model, 4, "elements", Link("x", 1e6, 0.0), local=0.3)
    assert time.overlappable == pytest.approx(0.2)
    alone = step_time(model, 1, "replicated", LINKS["1gbe"], local=0.3)
    assert (alone.communication, alone.longest) == (0.0, 0.3)


def test_step_time_sharding_divides_the_update():
    def local(strategy):
        link = LINKS["10gbe"]
        return step_time(model_of(MB), 4, strategy, link, local=1.0, update=0.4).local

    assert local("elements") == pytest.approx(0.7)
    assert local("replicated") == 1.0


def test_step_time_owner_of_a_large_tensor_delays_the_step():
    entries = (make_entry("a", (MB,), "float32"), make_entry("b", (10,), "float32"))
    model = Model(entries, "muon", MB)
    time = step_time(model, 4, "tensors", Link("x", 1e6, 0.0), local=0.0)
    assert time.communication == pytest.approx(2 * 3 * 4, rel=0.01)


def test_step_time_is_the_sum_of_its_printed_terms():
    model = model_of(25_600_000)
    link = Link("x", 1e8, 1e-3, cpu_per_byte=2e-9)
    exchange = step_time(model, 4, "elements", link, local=0.0).exchange
    buckets = len(model.plan(4, "elements").buckets)
    assert exchange.nbytes == pytest.approx(2 * 3 / 4 * 102_400_000)
    assert exchange.messages == 2 * 3 * buckets
    assert exchange.transfer == pytest.approx(exchange.nbytes / 1e8)
    assert exchange.waiting == pytest.approx(exchange.messages * 1e-3)
    assert exchange.copying == pytest.approx(exchange.nbytes * 2e-9)
    assert exchange.seconds == sum(exchange[2:])


def test_step_time_of_accumulated_gradients_sends_sums_in_float32():
    model, link = model_of(25_600_000, dtype="bfloat16"), Link("x", 1e8, 0.0)

    def sent(**options):
        time = step_time(model, 2, "elements", link, local=0.0, **options)
        return 2 * time.exchange.nbytes / 25_600_000  # bytes a parameter

    assert sent() == pytest.approx(2 + 2)
    assert sent(accumulate=4) == pytest.approx(4 + 2)
    assert sent(accumulate=4, accumulate_sharded=True) == pytest.approx(4 * 4 + 2)


def test_links_of_thunderbolt_send_their_rate_one_way():
    rates = {name: link.bandwidth * 8 * 1.046 for name, link in LINKS.items()}
    assert rates["thunderbolt5"] == pytest.approx(80e9)
    assert rates["thunderbolt4"] == pytest.approx(20e9)
