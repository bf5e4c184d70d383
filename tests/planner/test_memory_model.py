"""planner/memory_model: against plain arithmetic and MLX's own optimizers."""

import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from mlxdist.planner import STATE_COPIES, Model, memory, model_of_size
from tests.support import examples
from tests.support.plans import MB, make_entry, model_of

# Optimizer names of the command, and MLX's classes
OPTIMIZERS = {
    "sgd": lambda: optim.SGD(1e-2),
    "rmsprop": lambda: optim.RMSprop(1e-2),
    "adagrad": lambda: optim.Adagrad(1e-2),
    "adadelta": lambda: optim.AdaDelta(1e-2),
    "adam": lambda: optim.Adam(1e-2),
    "adamw": lambda: optim.AdamW(1e-2),
    "adamax": lambda: optim.Adamax(1e-2),
    "lion": lambda: optim.Lion(1e-2),
    "muon": lambda: optim.Muon(1e-2),
    "adafactor": lambda: optim.Adafactor(),
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_memory_of_adamw_is_two_states_divided_by_the_ranks(ranks):
    model = model_of(25_600_000)
    replicated = memory(model, ranks, "replicated")
    assert (replicated.parameters, replicated.gradients) == (102_400_000, 102_400_000)
    assert replicated.state == 204_800_000
    sharded = memory(model, ranks, "elements")
    assert sharded.state == pytest.approx(204_800_000 / ranks, rel=0.001)
    assert (sharded.buffers > 0) == (ranks > 1)
    by_tensor = memory(model, ranks, "tensors").state
    assert 204_800_000 / ranks <= by_tensor <= 204_800_000 / ranks * 4 / 3 + 800_000


@pytest.mark.parametrize("name", STATE_COPIES)
def test_memory_state_equals_that_of_mlx_optimizers(name):
    net = examples.Net()
    net.unfreeze()
    optimizer = OPTIMIZERS[name]()
    optimizer.init(net.trainable_parameters())
    allocated = sum(
        leaf.nbytes
        for path, leaf in tree_flatten(optimizer.state)
        if path not in ("step", "learning_rate") and leaf.size
    )
    entries = tuple(
        make_entry(path, tuple(leaf.shape), "float32")
        for path, leaf in tree_flatten(net.trainable_parameters())
    )
    assert memory(Model(entries, name, MB), 1, "replicated").state == allocated


def test_memory_of_64_ranks_and_70e9_parameters_is_planned_in_time():
    model = model_of_size(70 * 10**9, "bfloat16", "adamw", bucket_size=32 * 2**20)
    expected = 70e9 * 4 / 64
    assert memory(model, 64, "elements").state == pytest.approx(expected, rel=0.01)


def test_model_of_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'none'; choose sgd, "):
        model_of(MB, optimizer="none")
