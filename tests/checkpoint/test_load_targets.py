"""What a checkpoint is loaded into: its step, a sampler, scalars of an optimizer."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from tests.support.checkpoints import assert_all_raise, make_run, zeros
from tests.support.examples import distributed

pytestmark = pytest.mark.mpi


def test_plain_files_are_of_no_step(world, shared_folder):
    params, _ = make_run(world)
    if world.is_root:
        mx.save_safetensors(
            str(shared_folder / "model.safetensors"), dict(tree_flatten(params))
        )
    world.barrier()
    load_checkpoint(shared_folder, zeros(params))
    assert_all_raise(
        world,
        CheckpointError,
        "none of step 5",
        lambda: load_checkpoint(shared_folder, params, step=5),
    )


class Nested:
    """A sampler whose copies share its position."""

    def __init__(self, position):
        self.parts = {"position": position}

    def state_dict(self):
        return dict(self.parts)

    def load_state_dict(self, state):
        self.parts.update(state)


def test_refused_checkpoint_leaves_a_sampler_whose_copies_share_its_parts(
    world, shared_folder
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer, sampler=Nested(7))
    sampler, more = Nested(0), {**params, "more": mx.zeros(3)}
    assert_all_raise(
        world,
        CheckpointError,
        "no parameter more",
        lambda: load_checkpoint(shared_folder, more, optimizer, sampler=sampler),
    )
    assert sampler.parts == {"position": 0}
    load_checkpoint(shared_folder, params, optimizer, sampler=sampler)
    assert sampler.parts == {"position": 7}


class Gains(optim.SGD):
    """SGD with an array that is not of a parameter."""

    def __init__(self, size):
        super().__init__(0.1)
        self.state["gains"] = mx.ones(size)


def test_arrays_of_another_shape_beside_the_parameters_are_refused(
    world, shared_folder
):
    params, _ = make_run(world)

    def optimizer_of(size):
        optimizer = distributed(world, Gains(size), shard=True)
        optimizer.init(params)
        return optimizer

    save_checkpoint(shared_folder, 1, params, optimizer_of(2))
    other = optimizer_of(3)
    assert_all_raise(
        world,
        CheckpointError,
        r"gains is float32\[2\], wanted float32\[3\]",
        lambda: load_checkpoint(shared_folder, params, other),
    )
    assert other.gather_state()["gains"].tolist() == [1, 1, 1]
