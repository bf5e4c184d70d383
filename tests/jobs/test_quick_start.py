"""The training loop under README.md's "Quick start in code", run as it is written."""

import math
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tests.support.jobs import ROOT

README = (ROOT / "README.md").read_text()
QUICK_START = README[README.index("## Quick start in code") :]
LOOP = re.findall(r"```python\n(.*?)```", QUICK_START, re.DOTALL)[0]


@pytest.mark.mpi
@pytest.mark.parametrize("array", [mx.array, np.array], ids=["mlx", "numpy"])
def test_quick_start_prints_finite_losses_where_a_rank_has_no_examples(
    array, world, capsys
):
    count = 32 * world.size + 1  # on several ranks, all but rank 0 have an empty batch
    data = np.linspace(-1, 1, 2 * count, dtype=np.float32).reshape(count, 2)
    model = nn.Linear(2, 1)
    loss_and_grad = nn.value_and_grad(model, lambda model, x: model(x).square().mean())
    names = {"data": array(data), "model": model, "loss_and_grad": loss_and_grad}
    exec(LOOP, names)
    losses = [float(line) for line in capsys.readouterr().out.split()]
    assert len(losses) == (2 if world.is_root else 0)
    assert all(map(math.isfinite, losses))
    assert world.identical(model)
