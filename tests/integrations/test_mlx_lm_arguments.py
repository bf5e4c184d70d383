"""Errors that all ranks raise before anything is trained, and what rank 0 saves."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner import trainer

import mlxdist
from mlxdist.integrations.mlx_lm import train
from mlxdist.integrations.mlx_lm.upstream import replaced
from tests.support.fine_tuning import arguments, rows, tiny_model

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 36}, "the train dataset has 30 rows, fewer than one batch"),
        ({"batch_size": 0}, "batch_size=0 is the rows of all ranks together"),
        ({"grad_accumulation_steps": 0}, "grad_accumulation_steps=0, wanted 1 or more"),
        ({"steps_per_report": 0}, "steps_per_report=0, wanted 1 or more"),
        ({"max_seq_length": 1}, "max_seq_length=1, wanted 2 or more"),
        ({"iters": -1}, "iters=-1, wanted 0 or more"),
    ],
)
def test_train_with_wrong_arguments_is_refused_on_all_ranks(
    world, shared_folder, changes, message
):
    args = arguments(shared_folder, **changes)
    with pytest.raises(mlxdist.MismatchError, match=message):
        train(tiny_model(), optim.SGD(0.1), rows(30), args=args)


def test_train_without_validation_rows_accepts_no_interval_of_validations(
    world, shared_folder
):
    args = arguments(shared_folder, iters=0, steps_per_eval=0)
    train(tiny_model(), optim.SGD(0.1), rows(30), args=args)


def test_train_of_a_frozen_model_is_refused_on_all_ranks(world, shared_folder):
    model = tiny_model()
    model.freeze()
    with pytest.raises(mlxdist.MismatchError, match="no trainable parameters"):
        train(model, optim.SGD(0.1), rows(30), args=arguments(shared_folder))


@pytest.mark.mpi(min_size=2)
def test_train_with_rows_that_ranks_cannot_share_names_a_multiple(world, shared_folder):
    args = arguments(shared_folder, batch_size=world.size + 1)
    with pytest.raises(
        mlxdist.MismatchError, match=f"set batch_size={2 * world.size}, or another"
    ):
        train(tiny_model(), optim.SGD(0.1), rows(30), args=args)


@pytest.mark.mpi(min_size=2)
def test_train_with_less_data_on_a_rank_is_refused_on_all_ranks(world, shared_folder):
    data = rows(30 if world.is_root else 29)
    with pytest.raises(mlxdist.MismatchError, match="30 training rows"):
        train(tiny_model(), optim.SGD(0.1), data, args=arguments(shared_folder))


def test_train_with_checkpoints_of_an_earlier_run_is_refused(world, shared_folder):
    args = arguments(shared_folder, iters=1)
    options = {"args": args, "checkpoint_every": 1}
    train(tiny_model(), optim.SGD(0.1), rows(30), **options)
    with pytest.raises(mlxdist.MismatchError, match="checkpoints of an earlier"):
        train(tiny_model(), optim.SGD(0.1), rows(30), **options)
    with pytest.raises(mlxdist.CheckpointError, match="training rows"):
        train(tiny_model(), optim.SGD(0.1), rows(29), args=args, resume=True)


def test_train_without_a_checkpoint_to_resume_is_refused(world, shared_folder):
    with pytest.raises(mlxdist.CheckpointError, match="no checkpoint"):
        train(
            tiny_model(),
            optim.SGD(0.1),
            rows(30),
            args=arguments(shared_folder),
            resume=True,
        )


def test_train_saves_the_files_of_mlx_lm_once(world, shared_folder):
    model = tiny_model("lora")
    args = arguments(shared_folder, iters=4, steps_per_save=2)
    train(model, optim.SGD(0.1), rows(30), args=args)
    world.barrier()
    assert sorted(path.name for path in shared_folder.iterdir()) == [
        "0000002_adapters.safetensors",
        "0000004_adapters.safetensors",
        "adapters.safetensors",
    ]
    saved = mx.load(str(shared_folder / "adapters.safetensors"))
    expected = dict(tree_flatten(model.trainable_parameters()))
    assert saved.keys() == expected.keys()
    assert all(mx.array_equal(saved[name], expected[name]) for name in saved)


def test_replaced_name_that_mlx_lm_lacks_is_an_error_and_changes_nothing():
    before = trainer.evaluate
    with (
        pytest.raises(ImportError, match="has no gone, which mlxdist replaces"),
        replaced(trainer, evaluate=None, gone=None),
    ):
        pass
    assert trainer.evaluate is before
