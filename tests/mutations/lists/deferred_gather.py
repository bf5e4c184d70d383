"""Mistakes in gathers behind the next forward pass."""

from tests.mutations.mutation import mistakes

MUTATIONS = [
    *mistakes(
        "comm/deferred_gather.py",
        ("tests/comm/test_deferred_gather.py",),
        [
            (
                "sizes[rank] += -(-nbytes // _ALIGNMENT) * _ALIGNMENT",
                "sizes[rank] += nbytes",
            ),
            ("(2 * most - 2)", "(2 * most)"),
            ("elapsed * (total - done) / done", "elapsed * total / done"),
        ],
        (),
    ),
    *mistakes(
        "comm/deferred_gather.py",
        ("tests/comm/test_deferred_gather.py",),
        [
            ("piece.offset * item", "piece.offset"),
            ("            start += array.nbytes\n", ""),
            ("            done += nbytes\n", ""),
            ("range(len(buckets))[::-1]", "range(len(buckets))"),
        ],
    ),
    *mistakes(
        "comm/peer_streams.py",
        ("tests/comm/test_deferred_gather.py", "tests/optim/test_overlap_forward.py"),
        [
            ("            part = row[start:stop]\n", "            part = row\n"),
        ],
        (3,),
    ),
    *mistakes(
        "comm/deferred_gather.py",
        ("tests/optim/test_overlap_forward.py",),
        [("layout = self._left[0]", "layout = self._layout = self._left[0]")],
        (2,),
    ),
]
