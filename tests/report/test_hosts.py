"""A real timeline over two virtual hosts, whose collectives overlap with computing."""

import pytest

from mlxdist.report import summarize
from tests.support import jobs, netns
from tests.support.cluster import VirtualCluster

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(netns.problem() is not None, reason=str(netns.problem())),
]
PAUSE = 0.2  # seconds by which rank 1 is late in each step
TRAIN = f"""
import sys, time
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, mlxdist
world = mlxdist.init()
began = time.time()
model = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 256), nn.Linear(256, 8))
optimizer = mlxdist.DistributedOptimizer(
    optim.AdamW(1e-3), shard=True, transport=sys.argv[1]
)
optimizer.init(model)
step = nn.value_and_grad(model, lambda model, x: model(x).square().mean())
for _ in range(8):
    loss, gradients = step(model, mx.random.normal((16, 64)))
    mx.eval(loss)
    if world.rank == 1:
        time.sleep({PAUSE})
    optimizer.update(model, gradients)
    mx.eval(model.parameters())
world.barrier()
time.sleep(0.1)
print(world.rank, time.time() - began, flush=True)
"""


@pytest.mark.parametrize("transport", ["host", "native"])
def test_parts_of_a_job_over_hosts_add_up_and_name_the_straggler(
    transport, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where the cluster's commands run
    (tmp_path / "train.py").write_text(TRAIN)
    with VirtualCluster(2) as cluster:
        hosts = ",".join(host.name for host in cluster.hosts)
        command = [*jobs.MLXDIST_RUN, "-H", hosts, "--timeline", "t.json", "train.py"]
        variables = {"OMP_NUM_THREADS": "1"}
        line = cluster.command([*command, transport], environment=variables)
        done = jobs.run(line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    walls = dict(map(str.split, done.stdout.splitlines()))
    found = summarize(tmp_path / "t.json")  # refuses a trace that is not valid
    assert [rank.host for rank in found.ranks] == ["node1", "node2"]
    for rank in found.ranks:
        wall = float(walls[str(rank.rank)])
        assert sum(rank.parts.values()) == pytest.approx(wall, rel=0.02)
    assert found.steps == 8
    assert found.straggler.rank == 1
    assert found.straggler.per_step == pytest.approx(PAUSE, rel=0.25)
    assert found.clock_error < 1e-3
