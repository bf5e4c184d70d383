"""How much memory Metal keeps resident for a rank, without a Mac."""

import pytest

from mlxdist.world import metal_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("memory", "recommended", "ranks", "limit"),
    [
        (8, 5.33, 1, 0),  # nothing to spare
        (16, 10.67, 1, 8),  # 8 GiB left
        (24, 16, 1, 14.4),  # 0.9 of what Metal recommends
        (32, 22.5, 1, 20.25),
        (64, 48, 1, 41.6),  # 35% left
        (64, 48, 2, 20.8),
        (512, 464, 1, 332.8),
    ],
)
def test_wired_limit_leaves_memory_to_everything_else(
    memory, recommended, ranks, limit
):
    found = metal_memory.wired_limit(memory * GIB, int(recommended * GIB), ranks)
    assert found == pytest.approx(limit * GIB, abs=2)
    assert ranks * found < recommended * GIB


class FakeMetal:
    """What `mlx.core` does on a Mac of 64 GiB.

    Attributes:
        limits: that were set, in their order.
    """

    def __init__(self, limit=0):
        self.limits = [limit]

    def device_info(self):
        sizes = {"memory_size": 64 * GIB, "max_recommended_working_set_size": 48 * GIB}
        return {"device_name": "Apple M4 Max", **sizes}

    def set_wired_limit(self, limit):
        self.limits.append(limit)
        return self.limits[-2]


def test_wire_sets_a_limit_that_ranks_of_a_mac_share():
    metal = FakeMetal()
    assert metal_memory.wire(metal, ranks=2) == metal.limits[-1] == int(20.8 * GIB)


def test_wire_keeps_the_limit_of_the_user():
    metal = FakeMetal(limit=3 * GIB)
    assert metal_memory.wire(metal, ranks=1) == metal.limits[-1] == 3 * GIB


@pytest.mark.parametrize(
    ("on_metal", "value", "limits"),
    [(True, "1", 2), (True, "0", 1), (False, "1", 1)],
)
def test_wire_where_metal_computes_is_disabled_by_a_variable(
    on_metal, value, limits, monkeypatch
):
    monkeypatch.setenv("MLXDIST_WIRED", value)
    metal = FakeMetal()
    metal_memory.wire_where_metal_computes(metal, on_metal=on_metal)
    assert len(metal.limits) == limits
