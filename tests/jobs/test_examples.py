"""The trainings of launch/examples, on 2 ranks and as users start them, but shorter."""

import re
from importlib.util import find_spec

import pytest

from tests.support.jobs import LAUNCH, mpi_job

EXAMPLES = LAUNCH / "examples"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def output_of(name, *arguments, folder):
    result = mpi_job(2, EXAMPLES / name, *arguments, folder=folder, env=ONE_THREAD)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_classifier_learns_the_digits_in_one_epoch(tmp_path):
    output = output_of("classifier.py", "--epochs", 1, folder=tmp_path)
    assert float(re.search(r"test accuracy ([\d.]+)%", output)[1]) > 70


def test_language_model_learns_and_is_identical_on_all_ranks(tmp_path):
    output = output_of("language_model.py", "--steps", 10, folder=tmp_path)
    assert float(re.search(r"held-out loss ([\d.]+)", output)[1]) < 4.8  # ln 256 is 5.5
    assert "identical on all ranks: True" in output


def test_gan_draws_eight_images(tmp_path):
    output = output_of("gan.py", "--epochs", 1, "--batch-size", 256, folder=tmp_path)
    assert [len(line) for line in output.splitlines()] == 8 * [128]


@pytest.mark.long
@pytest.mark.parametrize("name", ["classifier", "language_model", "gan"])
def test_example_with_fewer_rows_than_ranks_names_the_option(tmp_path, name):
    script = EXAMPLES / f"{name}.py"
    result = mpi_job(2, script, "--batch-size", 1, folder=tmp_path, env=ONE_THREAD)
    assert result.returncode == 2
    assert "--batch-size is 1, wanted 2 or more" in result.stderr


@pytest.mark.long
@pytest.mark.skipif(find_spec("mlx_vlm") is None, reason="needs mlx-vlm")
def test_vision_language_model_learns_and_is_identical_on_all_ranks(tmp_path):
    script = EXAMPLES / "vision_language.py"
    result = mpi_job(2, script, "--steps", 100, folder=tmp_path, env=ONE_THREAD)
    assert result.returncode == 0, result.stderr  # mlx-vlm draws its progress there
    loss = re.search(r"test loss ([\d.]+), .*: True", result.stdout)
    assert float(loss[1]) < 1.5  # ln 10 is 2.3
    assert (tmp_path / "runs/vision_language/adapters.safetensors").is_file()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_example_has_less_than_100_lines(path):
    assert len(path.read_text().splitlines()) < 100
