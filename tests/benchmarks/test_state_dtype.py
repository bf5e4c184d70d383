"""The gate of optimizer state in 8 bits: benchmarks/state_dtype.py."""

import math

import pytest
import state_dtype
from ranks.state_dtype_rank import AFFINE, Task, train


@pytest.mark.parametrize(
    ("changes", "end", "drift", "passes"),
    [
        ([1.0, 1.0], 0.0, 0.0, True),
        ([1.002, 1.0025], 0.0025, 0.0005, True),
        ([1.004, 1.004], 0.004, 0.0, False),
        ([0.996, 0.996], -0.004, 0.0, False),
        ([1.0, 1.002], 0.002, 0.002, False),
        ([1.0, math.nan], math.nan, math.nan, False),
    ],
)
def test_difference_compares_the_last_tenth_and_the_one_before(
    changes, end, drift, passes
):
    reference = [4.0] * 30 + [3.0] * 20
    losses = [9.0] * 40 + [3.0 * change for change in changes for _ in range(5)]
    found = state_dtype.difference(losses, reference)
    assert found == pytest.approx((end, drift), nan_ok=True, abs=1e-12)
    assert found.passes == passes


def test_8_bit_state_is_near_float32_within_a_few_steps_and_affine_state_is_not():
    # The loss of so few steps is too noisy for the gate's 0.3%.
    task = Task("small", 30)
    losses = {
        variant: train(task, variant, seed=0, steps=30)[0]
        for variant in ("float32", "int8, embeddings too", AFFINE)
    }
    reference = losses.pop("float32")
    blocks, affine = (state_dtype.difference(x, reference) for x in losses.values())
    assert 0 < abs(blocks.end) < 0.02
    assert affine.end > 1
    assert not affine.passes
