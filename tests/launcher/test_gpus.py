"""Which NVIDIA GPU each rank of a machine computes on."""

import pytest

from mlxdist.launcher import gpus
from mlxdist.launcher.gpus import Share


@pytest.mark.parametrize(
    ("visible", "number", "local_size", "shares"),
    [
        (None, 0, 2, [(None, 0), (None, 0)]),
        (None, 1, 1, [(None, 1)]),
        (None, 1, 2, [(None, 2), (None, 2)]),
        (None, 2, 2, [("0", 1), ("1", 1)]),
        (None, 4, 2, [("0", 1), ("1", 1)]),
        (None, 2, 3, [("0", 2), ("1", 1), ("0", 2)]),
        ("3,1", 8, 2, [("3", 1), ("1", 1)]),
        ("3,1", 8, 3, [("3", 2), ("1", 1), ("3", 2)]),
        ("5", 8, 2, [(None, 2), (None, 2)]),
        (" GPU-1f2e , MIG-77 ", 1, 2, [("GPU-1f2e", 1), ("MIG-77", 1)]),
        ("2,-1,3", 4, 2, [(None, 2), (None, 2)]),  # as CUDA reads it
        ("1,4,0", 4, 2, [(None, 2), (None, 2)]),  # there is no GPU 4
        ("1,0,1", 4, 3, [("1", 2), ("0", 1), ("1", 2)]),
        ("7,5", 0, 2, [("7", 1), ("5", 1)]),
        ("", 4, 2, [(None, 0), (None, 0)]),
        ("-1", 4, 1, [(None, 0)]),
    ],
)
def test_share_of_gives_each_rank_a_gpu_in_turn(visible, number, local_size, shares):
    found = [gpus.share_of(visible, number, r, local_size) for r in range(local_size)]
    assert found == [Share(*share) for share in shares]


def test_ranks_find_their_gpu_and_nccl_refuses_a_shared_one(run):
    source = f"import os, sys; print(os.environ[{gpus.VISIBLE!r}], file=sys.stdout)"
    done = run(source, ranks=3, env={gpus.VISIBLE: "7,5"})
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["5", "7", "7"]
    assert done.stderr.count("2 ranks share a GPU") == 1
    env = {gpus.VISIBLE: "7", "MLXDIST_BACKEND": "nccl"}
    done = run(source, ranks=2, env=env)
    assert done.returncode == 1
    assert "nccl takes one rank on each" in done.stderr
    assert done.stdout == ""
