"""Checkpoints that are written while training goes on."""

import pytest

from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import async_save, directory
from tests.support.checkpoints import make_run, train
from tests.support.examples import assert_same_bits

pytestmark = pytest.mark.mpi


def test_a_background_save_has_what_was_there_when_it_began(world, shared_folder):
    own, ours = make_run(world)
    for step in range(4):
        own = train(own, ours, world, [step])
        wanted = own, ours.gather_state()
        save_checkpoint(shared_folder, step, own, ours, background=True, keep=2)
    own = train(own, ours, world, range(4, 8))
    save_checkpoint(shared_folder, 8, own, ours)  # waits for the one before
    tree, other = make_run(world)
    load_checkpoint(shared_folder, tree, other, step=3)
    assert_same_bits(tree, wanted[0])
    assert_same_bits(other.gather_state(), wanted[1])
    world.barrier()


def test_a_failure_in_the_background_reaches_the_next_step(
    world, shared_folder, monkeypatch
):
    own, ours = make_run(world)
    save_checkpoint(shared_folder, 1, own, ours)
    commit = directory.commit

    def failing(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "commit", failing)
    save_checkpoint(shared_folder, 2, own, ours, background=True)
    async_save.saver_of(world).wait()
    world.barrier()
    with pytest.raises(MismatchError, match="No space left"):
        train(own, ours, world, [0])
    train(own, ours, world, [0])
    save_checkpoint(shared_folder, 3, own, ours, background=True)
    with pytest.raises(MismatchError, match=r"(?s)step 3 was not saved.*No space"):
        save_checkpoint(shared_folder, 4, own, ours)
    monkeypatch.setattr(directory, "commit", commit)
    assert [path.name for path in shared_folder.glob("*save*")] == [
        "save-00001-step-00000001"
    ]
    save_checkpoint(shared_folder, 4, own, ours)
    assert load_checkpoint(shared_folder, own, ours).step == 4
