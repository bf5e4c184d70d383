"""Reports: what the values of all ranks become."""

import math

import numpy as np
import pytest

from mlxdist.trackers.report import combine


def report_of(names, rows, weights=None, sums=()):
    weights = np.ones(len(rows)) if weights is None else np.array(weights)
    return combine(7, names, np.array(rows, float), weights, sums)


def test_mean_is_weighted_and_equal_values_are_not_rounded():
    report = report_of(["train_loss", "learning_rate"], [[1, 0.1], [4, 0.1]], [1, 2])
    assert report.values == {"train_loss": 3, "learning_rate": 0.1}


def test_sum_and_spread_count_a_rank_of_weight_0():
    names = ["tokens_per_second", "wait_time"]
    report = report_of(names, [[5, 0.5], [0, 0.1], [6, 0.9]], [1, 0, 1], names[:1])
    values = report.values
    assert values["tokens_per_second"] == 11
    assert values["wait_time"] == pytest.approx(0.5)
    assert (values["wait_time_min"], values["wait_time_min_rank"]) == (0.1, 1)
    assert (values["wait_time_max"], values["wait_time_max_rank"]) == (0.9, 2)


def test_rank_of_weight_0_may_have_no_loss():
    report = report_of(["train_loss"], [[math.nan], [2]], [0, 5])
    assert (report.values, report.left_out) == ({"train_loss": 2}, {})


def test_values_that_are_not_finite_are_left_out_and_named():
    rows = [[math.nan, math.inf], [2, 1], [4, 3], [math.inf, 2]]
    report = report_of(["train_loss", "step_time"], rows)
    assert report.values["train_loss"] == 3
    assert report.values["step_time_min_rank"] == 1
    assert report.values["step_time_max_rank"] == 2
    assert report.left_out == {"train_loss": [0, 3], "step_time": [0]}
    assert report.problems() == {
        "train_loss": "step 7: train_loss is inf or nan on ranks 0, 3, and left out of "
        "the mean over the ranks",
        "step_time": "step 7: step_time is inf on rank 0, and left out of the mean "
        "over the ranks",
    }


def test_value_that_no_rank_has_is_nan():
    report = report_of(["train_loss", "step_time"], [[math.nan, math.nan]])
    assert all(map(math.isnan, report.values.values()))
    assert list(report.values) == ["train_loss", "step_time"]
