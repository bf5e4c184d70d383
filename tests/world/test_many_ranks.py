"""Jobs of 32 ranks on this machine. Where cores are few, the ranks run in turns."""

import os
import re
import signal
import time

import pytest

from tests.support.jobs import MLXDIST_RUN, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
RANKS = 32
TIMEOUT = 20.0  # seconds; of mlxdist.init() in these jobs
SCRIPT = """
import hashlib, os, resource, signal, sys, time
import mlx.core as mx, mlx.optimizers as optim, numpy as np
import mlxdist
how = sys.argv[1]
world = mlxdist.init(timeout=float(sys.argv[2]))
optimizer = mlxdist.DistributedOptimizer(optim.AdamW(0.1), shard=True)
p = {"w": mx.random.normal((37, 11)), "b": mx.zeros(13)}
optimizer.init(p := world.broadcast(p))
for step in range(5):
    if world.rank == 17 and step == 3 and how != "none":
        print("failing", time.time(), flush=True)
        if how == "raise":
            raise KeyError("the dog ate it")
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(1000)
    rank = mx.array(float(world.rank))
    p = optimizer.apply_gradients({"w": mx.ones((37, 11)) * rank, "b": mx.ones(13)}, p)
    mx.eval(p)
bits = hashlib.sha256(b"".join(np.array(p[name]).tobytes() for name in p)).hexdigest()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print("rank", world.rank, bits, memory, flush=True)
"""


def job_of_32(folder, how):
    (folder / "job.py").write_text(SCRIPT)
    command = [*MLXDIST_RUN, "-n", str(RANKS), "job.py", how, str(TIMEOUT)]
    start = time.time()
    result = run(command, timeout=500, cwd=folder)
    print(f"{how}: {time.time() - start:.0f} s")
    return result


def test_job_of_32_ranks_trains_the_same_parameters_on_each(tmp_path):
    result = job_of_32(tmp_path, "none")
    assert result.returncode == 0, result.stderr
    lines = re.findall(r"rank (\d+) (\w+) (\d+)", result.stdout)
    assert sorted(int(rank) for rank, _, _ in lines) == list(range(RANKS))
    assert len({bits for _, bits, _ in lines}) == 1
    print(f"at most {max(int(mib) for _, _, mib in lines)} MiB a rank")


@pytest.mark.parametrize("how", ["raise", "SIGKILL", "SIGSTOP"])
def test_failure_of_one_of_32_ranks_ends_the_job(how, tmp_path):
    result = job_of_32(tmp_path, how)
    end = time.time()
    seconds = end - float(re.search(r"failing (\S+)", result.stdout)[1])
    expected = 128 + signal.SIGKILL if how == "SIGKILL" else 1
    assert result.returncode == expected, result.stderr
    assert "rank 17" in result.stderr
    # The ranks share the cores at the end, too.
    limit = 15.0 + RANKS / (os.cpu_count() or 1) + TIMEOUT * (how == "SIGSTOP")
    assert seconds < limit, f"{seconds:.1f} s\n{result.stderr}"
