"""launch/run_folder.py: no run overwrites another, and one job at a time has a run."""

import contextlib
import json
import re
from pathlib import Path

import pytest

RUNS = Path("runs")

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("launch")]


@pytest.fixture
def open_run(world):
    """A function that opens a run. All are closed at the end."""
    from run_folder import RunFolder

    with contextlib.ExitStack() as runs:

        def start_run(name=None, *, resume=False):
            run = RunFolder(world, name, resume=resume)
            runs.callback(run.close)
            return run

        yield start_run


def write_results(world, folder, *, checkpoint=False):
    """Write what a run leaves, on rank 0."""
    if world.is_root:
        folder.metrics.write_text(json.dumps({"step": 1}) + "\n")
        if checkpoint:
            folder.checkpoints.mkdir()
            (folder.checkpoints / "save").write_text("")
    folder.close()
    world.barrier()


def refusal(world, capsys, open_run, *arguments, **options):
    """Assert that all ranks refuse to open a run; return rank 0's message."""
    with pytest.raises(SystemExit) as caught:
        open_run(*arguments, **options)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("train_lm.py: error: ") == (1 if world.is_root else 0)
    world.barrier()
    return error if world.is_root else None


def assert_refused(message, text):
    assert message is None or re.search(text, message), message


def test_run_of_a_new_name_gets_its_folder(open_run):
    folder = open_run("a")
    assert str(folder.path) == "runs/a"
    assert folder.path.is_dir()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_run_with_results_is_not_started_again(open_run, world, capsys, checkpoint):
    folder = open_run("a")
    write_results(world, folder, checkpoint=checkpoint)
    before = sorted(path.name for path in folder.path.iterdir())
    message = refusal(world, capsys, open_run, "a")
    assert_refused(message, "runs/a has the results of an earlier run.*--resume")
    assert sorted(path.name for path in folder.path.iterdir()) == before


def test_run_without_a_name_never_takes_the_folder_of_another(open_run, world):
    names = []
    for _ in range(3):
        folder = open_run()
        names.append(folder.path.name)
        write_results(world, folder)
    assert names == ["lm", "lm-2", "lm-3"]


def test_resume_without_a_name_takes_the_last_run(open_run, world):
    for _ in range(2):
        write_results(world, open_run(), checkpoint=True)
    assert open_run(resume=True).path.name == "lm-2"


@pytest.mark.parametrize("name", [None, "a"])
def test_resume_of_a_run_that_is_not_there_fails(open_run, world, capsys, launch, name):
    message = refusal(world, capsys, open_run, name, resume=True)
    assert_refused(message, f"runs/{name or 'lm'} has no checkpoint to continue from")
    assert not (launch / "runs").exists()


def test_resume_of_a_run_without_checkpoints_fails(open_run, world, capsys):
    write_results(world, open_run("a"))
    message = refusal(world, capsys, open_run, "a", resume=True)
    assert_refused(message, "runs/a has no checkpoint to continue from")


@pytest.mark.parametrize("has_results", ["results", "no results yet"])
@pytest.mark.parametrize("resume", [False, True])
def test_run_in_use_is_refused_until_its_job_has_ended(
    open_run, world, capsys, resume, has_results
):
    write_results(world, open_run("a"), checkpoint=True)
    first = open_run("a", resume=True)  # the lock of an ended job is no lock
    if has_results != "results":  # the other job has just started
        world.barrier()
        if world.is_root:
            first.metrics.unlink()
            (first.checkpoints / "save").unlink()
        world.barrier()
    message = refusal(world, capsys, open_run, "a", resume=resume)
    assert_refused(message, r"runs/a is in use by process \d+ on .*choose another")
    first.close()
    world.barrier()
    if resume and has_results == "results":
        open_run("a", resume=True)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", [None, "a"])
def test_restarted_job_continues_its_run(
    open_run, world, monkeypatch, name, checkpoint
):
    folder = open_run(name)
    write_results(world, folder, checkpoint=checkpoint)
    monkeypatch.setenv("MLXDIST_RESTARTS", "1")
    assert open_run(name).path == folder.path


def test_run_folder_that_is_a_file_is_refused(open_run, world, capsys, launch):
    if world.is_root:
        (launch / "runs").write_text("")
    world.barrier()
    assert_refused(refusal(world, capsys, open_run, "a"), "runs/a: Not a directory")


def test_link_in_the_place_of_the_lock_is_refused(open_run, world, capsys):
    """In a folder that many users share, another one may have planted it."""
    if world.is_root:
        RUNS.joinpath("a").mkdir(parents=True)
        RUNS.joinpath("victim").write_text("precious")
        RUNS.joinpath("a", "lock").symlink_to("../victim")
    world.barrier()
    message = refusal(world, capsys, open_run, "a")
    assert_refused(message, "runs/a: Too many levels of symbolic links")
    assert RUNS.joinpath("victim").read_text() == "precious"
