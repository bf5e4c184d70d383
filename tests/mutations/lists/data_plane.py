"""Mistakes in the data plane over other backends than MPI."""

from tests.mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        "comm/ring.py",
        "self._rank - 2 - step",
        "self._rank - 1 - step",
        ("tests/comm/test_ring.py",),
        (3,),
    ),
    Mutation(
        "comm/ring.py",
        "if local.size == 0:",
        "if False:",
        ("tests/comm/test_ring.py",),
        (3,),
    ),
    Mutation(
        "world/addresses.py",
        "SO_REUSEPORT, 1",
        "SO_REUSEPORT, 0",
        ("tests/world/test_addresses.py",),
        equivalent="on Linux SO_REUSEADDR allows it too; macOS needs it",
    ),
    Mutation(
        "world/addresses.py",
        "if len(addresses) == len(every) and all(",
        "if len(addresses) == len(every) or all(",
        ("tests/world/test_addresses.py",),
    ),
    Mutation(
        "launcher/environment.py",
        "os.environ.pop(name, None)",
        "pass",
        ("tests/world/test_data_plane.py",),
        (2,),
    ),
    Mutation(
        "world/data_plane.py",
        "lacks = not mx",
        "lacks = not not mx",
        ("tests/world/test_data_plane.py",),
        (2,),
    ),
    # Metal's memory
    Mutation(
        "world/metal_memory.py",
        "max(_LEAST_LEFT, _SHARE_LEFT * memory)",
        "_SHARE_LEFT * memory",
        ("tests/world/test_metal_memory.py",),
    ),
    Mutation(
        "world/metal_memory.py",
        "metal.set_wired_limit(former)",
        "pass",
        ("tests/world/test_metal_memory.py",),
    ),
    Mutation(
        "world/process.py",
        "    device.clear_cache()",
        "    pass",
        ("tests/checkpoint/test_api.py",),
        (1,),
    ),
]
