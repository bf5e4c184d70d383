"""Mistakes in what is queued ahead, so that an accelerator is never idle."""

from tests.mutations.mutation import Mutation, mistakes

MUTATIONS = [
    Mutation(
        "arrays/device.py",
        "return 0 if on_cpu() else 1",
        "return 0",
        ("tests/optim/test_accelerator.py",),
        (2,),
    ),
    Mutation(
        "arrays/device.py",
        "or len(arrays) < 2 else [join(arrays)]",
        "or 1 else [join(arrays)]",
        ("tests/arrays/test_device.py",),
    ),
    Mutation(
        "arrays/device.py",
        "_MOST_ERRORS = 8",
        "_MOST_ERRORS = 1",
        ("tests/arrays/test_device.py",),
    ),
    Mutation(
        "arrays/device.py",
        "        recover(arrays)\n",
        "",
        ("tests/arrays/test_device.py",),
    ),
    Mutation(
        "arrays/device.py",
        "    _errors.clear()\n",
        "",
        ("tests/arrays/test_device.py",),
    ),
    Mutation(
        "optim/step.py",
        "            device.recover(leaves_of(target.parameters).values())\n",
        "",
        ("tests/optim/test_lost_events.py",),
        (1,),
    ),
    *mistakes(
        "comm/wire.py",
        ("tests/optim/test_accelerator.py",),
        [
            ("index + device.buckets_ahead()", "index"),
            ("packed = device.packed(chunk.arrays)", "return chunk"),
        ],
    ),
    Mutation(
        "optim/local_shard.py",
        "        arrays = self.inner.scalars()\n",
        "        arrays: list[Array] = []\n",
        ("tests/optim/test_accelerator.py",),
        (2,),
    ),
]
