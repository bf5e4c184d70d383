"""The arguments of an update, found by an index of earlier steps."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlxdist.layout.entries import Entry
from mlxdist.layout.paths import KeyPath
from mlxdist.layout.sharding import make_plan
from mlxdist.optim.batch import TreeIndexes, read_batch


class Adapted(nn.Module):
    """A frozen base with adapters, in lists and dicts, as LoRA makes them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.layers = [nn.Linear(2, 2) for _ in range(3)]
        self.adapters = {"0": {"a": mx.ones(2), "b": mx.zeros(2)}}
        self.embed.freeze()
        self.layers[0].freeze()
        self.layers[1].freeze(keys="weight")


@pytest.fixture
def model():
    return Adapted()


def indexed(model):
    gradients = model.trainable_parameters()
    batch = read_batch(None, gradients, model, None)
    entries = [
        Entry(path, tuple(a.shape), "float32") for path, a in batch.gradients.items()
    ]
    plan = make_plan(entries, 1, strategy="replicated", bucket_size=1024)
    return gradients, TreeIndexes.of(plan, batch)


def test_batch_of_a_model_with_frozen_parameters_is_found_by_the_index(model):
    gradients, index = indexed(model)
    batch = read_batch(index, gradients, model, 2.0)
    assert batch.index is index
    assert len(batch.gradients) == len(tree_flatten(gradients)) == 5
    assert batch.parameters[KeyPath(("layers", 2, "weight"))] is model.layers[2].weight
    assert (batch.weight, batch.problem) == (2.0, None)


def test_batch_of_other_gradients_is_searched(model):
    gradients, index = indexed(model)
    model.layers[0].unfreeze()
    batch = read_batch(index, model.trainable_parameters(), model, None)
    assert batch.index is None
    assert len(batch.gradients) == 7
    assert read_batch(index, {**gradients, "more": mx.ones(1)}, model, None).problem


def test_batch_with_an_array_in_place_of_a_layer_is_searched(model):
    gradients, index = indexed(model)
    layers = [*gradients["layers"][:1], mx.ones(1), *gradients["layers"][2:]]
    batch = read_batch(index, {**gradients, "layers": layers}, model, None)
    assert batch.index is None
    assert KeyPath(("layers", 1)) in batch.gradients


def test_batch_of_a_model_without_a_layer_has_a_problem(model):
    gradients, index = indexed(model)
    del model.layers[2]["bias"]
    batch = read_batch(index, gradients, model, None)
    assert batch.index is None
    assert "another structure" in batch.problem
