"""What is uploaded: it is built, checked, and installed into an empty environment."""

import re
import subprocess
import sys

import pytest

from mlxdist.version import __version__
from tests.support.jobs import ROOT, clean_environment
from tests.support.pages import Page

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

SET_UP = """
import mlx.core as mx
from mlx import nn

data = mx.random.normal((129, 4), key=mx.random.key(1))
model = nn.Linear(4, 1)
loss_and_grad = nn.value_and_grad(model, lambda model, x: model(x).square().mean())
"""


def run(folder, *command):
    """Run a command outside of the checkout; return what it prints."""
    ran = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**clean_environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def make_environment(folder, *packages):
    """Return the folder of programs of a new virtual environment."""
    run(ROOT, sys.executable, "-m", "venv", folder)
    run(ROOT, folder / "bin" / "pip", "install", "-q", *packages)
    return folder / "bin"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the source archive and the wheel, and the tools' programs."""
    folder = tmp_path_factory.mktemp("dist")
    tools = make_environment(folder / "tools", "build", "twine")
    run(ROOT, tools / "python", "-m", "build", "--outdir", folder / "dist", ROOT)
    return folder / "dist", tools


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An empty folder, and the programs of an environment with the wheel alone."""
    (wheel,) = built[0].glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    return folder, make_environment(folder / "venv", wheel)


def test_archives_pass_the_checks_of_the_index(built):
    dist, tools = built
    names = sorted(path.name for path in dist.iterdir())
    wheel = f"mlxdist-{__version__}-py3-none-any.whl"
    assert names == [wheel, f"mlxdist-{__version__}.tar.gz"]
    run(dist, tools / "twine", "check", "--strict", *names)


def test_description_renders_without_links_into_the_repository(built):
    dist, tools = built
    (wheel,) = dist.glob("*.whl")
    run(dist, tools / "pip", "install", "-q", "readme-renderer[md]", "pkginfo")
    render = (
        "import sys, pkginfo, readme_renderer.markdown as markdown\n"
        "print(markdown.render(pkginfo.Wheel(sys.argv[1]).description))"
    )
    page = run(dist, tools / "python", "-c", render, wheel)
    assert re.search(r"<h1[^>]*>mlxdist", page)
    targets = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []


def test_installed_wheel_is_typed(installed):
    folder, programs = installed
    where = "import mlxdist, pathlib; print(pathlib.Path(mlxdist.__file__).parent)"
    package = run(folder, programs / "python", "-c", where).strip()
    assert package.startswith(str(folder))
    run(folder, "test", "-f", f"{package}/py.typed")


def test_installed_wheel_passes_its_self_tests(installed):
    folder, programs = installed
    lines = run(folder, programs / "mlxdist", "test").splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert len(lines) >= 4


def test_installed_wheel_trains_with_the_loop_of_the_readme(installed):
    folder, programs = installed
    (block,) = [
        block.code
        for block in Page("README.md").blocks("python")
        if "ShardedSampler" in block.code
    ]
    (folder / "train.py").write_text(SET_UP + block)
    losses = run(folder, programs / "mlxdist", "run", "-n", "2", "train.py").split()
    assert len(losses) == 2  # of 129 examples: the last joins the second batch
    assert all(0 < float(loss) < 100 for loss in losses)
