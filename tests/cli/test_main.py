"""cli: the command as a whole, and which commands are installed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlxdist
from tests.support.jobs import ROOT, clean_environment

WITHOUT_WHEEL_FILES = {"mlxdist/cli/bench.py", "mlxdist/cli/bench_runner.py"}


def mlxdist_help(package_root, folder):
    """Run `mlxdist --help` of the package in a folder."""
    command = [sys.executable, "-m", "mlxdist.cli", "--help"]
    return subprocess.run(
        command,
        env=clean_environment({"PYTHONPATH": str(package_root)}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_cli_import_leaves_slow_modules_for_later():
    """`mlxdist run` starts the ranks, which import them anyway."""
    code = "import sys, mlxdist.cli; slow = {'numpy', 'mlx.core', 'rich'}; "
    code += "print(sorted(slow & {*sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr


@pytest.fixture(scope="module")
def wheel_files():
    """The package's files in a wheel, by their paths in the archive."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(ROOT))
    files = {f.distribution_path for f in builder.recurse_included_files()}
    return {name for name in files if name.endswith(".py")}


def test_wheel_has_all_modules_but_those_of_bench(wheel_files):
    sources = Path(mlxdist.__file__).parent.rglob("*.py")
    package = {str(path.relative_to(ROOT)) for path in sources}
    assert package - wheel_files == WITHOUT_WHEEL_FILES
    assert wheel_files <= package


def test_help_of_a_wheel_has_all_commands_but_bench(wheel_files, tmp_path):
    root = tmp_path / "site-packages"
    for name in wheel_files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    installed = mlxdist_help(root, tmp_path)
    assert installed.returncode == 0, installed.stderr
    assert "    plan " in installed.stdout
    assert "bench" not in installed.stdout
    checkout = mlxdist_help(ROOT, tmp_path)
    benches = [x for x in checkout.stdout.splitlines() if x.startswith("    bench ")]
    assert len(benches) == 1


def test_description_for_the_index_has_no_links_into_the_repository():
    """An index shows it far from the files that README.md links to."""
    metadata = pytest.importorskip("hatchling.metadata.core")
    plugins = pytest.importorskip("hatchling.plugin.manager").PluginManager()
    text = metadata.ProjectMetadata(str(ROOT), plugins).core.readme
    links = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", text)
    targets = [markdown or html for markdown, html in links]
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []
    assert text.startswith("# mlxdist\n")
