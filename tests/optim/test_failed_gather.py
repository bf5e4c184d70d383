"""An error while parameters are gathered into their own memory: the step is torn."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.arrays.in_place import InPlace
from mlxdist.comm import gather, window
from mlxdist.comm.mpi import InFlight, MpiTransport
from tests.support.examples import assert_same_bits, distributed

pytestmark = [
    pytest.mark.mpi(min_size=2),
    pytest.mark.usefixtures("compiled_always", "in_place_always"),
]
NAMES = "abcd"


@pytest.fixture
def in_place_always(monkeypatch):
    """Gather each tensor of a bucket of its own in place, two at a time."""
    monkeypatch.setattr(gather, "IN_PLACE_FROM", 0)
    monkeypatch.setattr(window, "IN_FLIGHT_IN_TURN", 0)


class Faults:
    """Raises an error at the n-th call of a kind from `arm` on."""

    def __init__(self):
        self._left = None

    def arm(self, calls):
        self._left = calls

    def count(self):
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._left = None
                raise MemoryError("no memory to gather")


def fail_before_start(monkeypatch, faults):
    """Fail once this rank's part is in the old memory, and before it is sent."""
    start = MpiTransport.start_all_gather

    def fails(self, parts, bucket, into=None):
        faults.count()
        return start(self, parts, bucket, into)

    monkeypatch.setattr(MpiTransport, "start_all_gather", fails)


def fail_while_waiting(monkeypatch, faults):
    """Fail in the wait for a bucket after the next ones were sent."""
    finish = InFlight.finish

    def fails(self):
        if self.exchange.name == "all_gather":
            faults.count()
        return finish(self)

    monkeypatch.setattr(InFlight, "finish", fails)


def fail_to_write(monkeypatch, faults):
    """Fail before this rank's part is in the old memory."""
    write = InPlace.write

    def fails(self, start, part):
        faults.count()
        write(self, start, part)

    monkeypatch.setattr(InPlace, "write", fails)


@pytest.fixture(params=[fail_before_start, fail_while_waiting, fail_to_write])
def faults(request, monkeypatch):
    counter = Faults()
    request.param(monkeypatch, counter)
    return counter


def gradient_of(step):
    return {name: mx.full((53, 61), float(step)) for name in NAMES}


@pytest.mark.parametrize("calls", [1, 3])
def test_error_in_a_gather_on_one_rank_refuses_all_ranks_until_init(
    calls, faults, world, shared_folder
):
    model = nn.Module()
    for name in NAMES:
        model[name] = mx.zeros((53, 61))
    optimizer = distributed(
        world, optim.SGD(1.0, momentum=0.5), shard="elements", transport="host"
    )
    optimizer.init(model)
    optimizer.update(model, gradient_of(1))
    kept = {name: model[name] for name in NAMES[:2]}  # those are not overwritten
    copies = {name: mx.array(array.tolist()) for name, array in kept.items()}
    if world.is_root:
        faults.arm(calls)
        with pytest.raises(MemoryError):
            optimizer.update(model, gradient_of(2))
    else:
        optimizer.update(model, gradient_of(2))
    assert_same_bits(kept, copies)
    with pytest.raises(mlxdist.MismatchError, match="some parameters are of that step"):
        optimizer.update(model, gradient_of(3))
    with pytest.raises(mlxdist.MismatchError, match="some parameters are of that step"):
        mlxdist.save_checkpoint(shared_folder, 1, model, optimizer)
    optimizer.init(model)
    optimizer.update(model, gradient_of(3))
    assert world.identical(model)
