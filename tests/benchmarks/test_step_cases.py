"""Cases of `step` and the phases of its samples."""

import time

import pytest
from common import step_cases
from ranks.phases import END, PhaseClock
from ranks.shapes import shapes_of

from mlxdist.comm.flight_recorder import Recorder


@pytest.mark.parametrize("size", ["1M", "10M", "50M", "200M"])
def test_shapes_of_a_size_have_that_many_parameters(size):
    case = step_cases.Case(size, "float32", 1, 1)
    assert case.parameters == pytest.approx(int(size[:-1]) * 1e6, rel=0.01)
    assert shapes_of(size)["layers.0.mlp.up.weight"][0] % 256 == 0
    assert len(shapes_of("2000x1000")) == 2000
    with pytest.raises(ValueError, match="wanted such as"):
        shapes_of("50 million")


def test_launches_hold_every_pair_within_the_available_memory():
    names = [*step_cases.MLXDIST, step_cases.UPSTREAM, step_cases.UPSTREAM_TUNED]
    case = step_cases.Case("200M", "float32", 1, 1)
    pairs = step_cases.pairs(case, names)
    for trim in (False, True):
        available = max(step_cases.memory(case, pair, 2, trim=trim) for pair in pairs)
        launches = step_cases.launches(case, names, 2, available)
        assert len(launches) > 1
        for launch in launches:
            assert launch.trim == trim
            assert step_cases.memory(case, launch.names, 2, trim=trim) <= available
        for pair in pairs:
            assert any(set(pair) <= set(launch.names) for launch in launches)
    (launch,) = step_cases.launches(case, names, 2, 10**12)
    assert set(launch.names) == {name for pair in pairs for name in pair}


def test_phase_clock_phases_add_up_to_the_step():
    recorder = Recorder()
    clock = PhaseClock(recorder)
    began = time.perf_counter()
    with clock.running(), recorder.call("update", 1):
        recorder.phase("exchange")
        inside = time.perf_counter()
        with recorder.waiting():
            time.sleep(0.02)
        least = time.perf_counter() - inside
    most = time.perf_counter() - began
    (phases,) = clock.take()
    assert 0.02 <= phases.pop("waiting") <= phases["exchange"]
    assert END in phases
    assert least <= sum(phases.values()) <= most
    recorder.phase("afterwards")
    assert clock.take() == []


def test_compiled_contenders_are_compared_on_the_tensors_of_lora_alone():
    names = step_cases.contenders([])
    for tensors in step_cases.SIZES:
        pairs = step_cases.pairs(step_cases.Case(tensors, "float32", 1, 1), names)
        compared = ("compiled", "upstream compiled") in pairs
        assert compared == (tensors == step_cases.LORA)
