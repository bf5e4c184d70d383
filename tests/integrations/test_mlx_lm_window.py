"""The loss of a report, over steps of which some have no tokens."""

import math

import mlx.core as mx
import pytest

from mlxdist.integrations.mlx_lm.step import Measured
from mlxdist.integrations.mlx_lm.window import Window

pytestmark = pytest.mark.mpi


def test_report_leaves_out_steps_without_tokens(world):
    window = Window(world)
    for loss, tokens in ((0.0, 0.0), (6.0, 3.0)):
        window.add(Measured(mx.array(loss), mx.array(tokens)), 1.0)
    assert window.report()[:3] == (2.0, 3 * world.size, 2)


def test_report_without_any_token_has_no_loss(world):
    window = Window(world)
    window.add(Measured(mx.array(0.0), mx.array(0.0)), 1.0)
    assert math.isnan(window.report().loss)
