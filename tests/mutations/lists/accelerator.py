"""Mistakes in what is queued ahead, so that an accelerator is never idle."""

from tests.mutations.mutation import mistakes

MUTATIONS = [
    *mistakes(
        "arrays/device.py",
        ("tests/optim/test_accelerator.py",),
        [
            ("return 0 if on_cpu() else 1", "return 0"),
            ("or len(arrays) < 2 else [join(arrays)]", "or 1 else [join(arrays)]"),
        ],
    ),
    *mistakes(
        "comm/wire.py",
        ("tests/optim/test_accelerator.py",),
        [
            ("index + device.buckets_ahead()", "index"),
            ("packed = device.packed(chunk.arrays)", "return chunk"),
        ],
    ),
]
