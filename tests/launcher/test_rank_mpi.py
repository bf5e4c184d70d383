"""Jobs whose script uses MLX's own collectives, or none."""

import pytest

GLOBAL = """
import mlx.core as mx
group = mx.distributed.init()
total = mx.distributed.all_sum(mx.array(1.0), stream=mx.cpu)
print(group.size(), total.item(), flush=True)
"""
# Each leaves MPI in another state at its end.
ENDS = {
    "global": "",
    "split": "part = group.split(group.rank() % 2)\n",
    "pending": "import atexit\natexit.register(print, end='', flush=True)\n"
    "mx.async_eval(mx.distributed.all_sum(mx.ones(9), stream=mx.cpu))\n",
    "exit": "raise SystemExit(0)\n",
    "mpi4py": "from mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\n",
}


@pytest.mark.parametrize(
    ("end", "ranks"),
    [
        ("global", 1),
        ("split", 2),
        ("pending", 2),
        *(
            pytest.param(end, ranks, marks=pytest.mark.long)
            for end, ranks in (("mpi4py", 1), ("mpi4py", 2), ("global", 2), ("exit", 2))
        ),
    ],
)
def test_script_that_never_calls_init_joins_and_exits_with_0(run, end, ranks):
    """mlx-lm's own command, for example."""
    done = run(GLOBAL + ENDS[end], ranks=ranks)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ranks * [f"{ranks} {float(ranks)}"]


def test_script_that_never_calls_init_and_fails_ends_the_job(run):
    done = run(GLOBAL + "if group.rank(): 1 / 0\ntotal = total + 1", ranks=2)
    assert done.returncode == 1
    assert "rank 1 of 2 failed at script.py:6 (ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_run_reports_that_ranks_with_mlx_have_never_met(run, ranks):
    done = run("import mlx.core as mx; mx.eval(mx.ones(3) + 1)", ranks=ranks)
    assert done.returncode == 0
    message = f"mlxdist run: the {ranks} ranks never joined each other"
    assert (message in done.stderr) == (ranks > 1)
    assert ("mlxdist.init()" in done.stderr) == (ranks > 1)


def test_run_says_nothing_of_ranks_without_mlx(run):
    assert run("pass", ranks=2).stderr == ""
