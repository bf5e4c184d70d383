"""Where new parameters go."""

import mlx.core as mx
import mlx.nn as nn

from mlxdist.arrays.tree_index import TreeIndex
from mlxdist.comm.gather import Whole
from mlxdist.layout.entries import Entry
from mlxdist.layout.paths import KeyPath
from mlxdist.layout.sharding import Bucket
from mlxdist.optim.targets import ModelTarget


def test_model_counts_as_updated_once_a_bucket_is_published_and_not_before():
    """Until then an error leaves its buffers alone: the exchanges may be broken."""
    model, path = nn.Linear(3, 2), KeyPath(("bias",))
    target, index = ModelTarget(model), TreeIndex([path])
    assert target.slot(index, path) == (model, "bias")
    assert not target.was_updated
    bucket = Bucket((Entry(path, (2,), "float32"),), ranks=1)
    target.publish(index, Whole(bucket, [mx.ones(2)]))
    assert target.was_updated
    assert mx.all(model.bias == 1).item()
