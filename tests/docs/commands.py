"""How a command of a page is tested, by its first words."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from mlxdist import cli
from tests.support import suite
from tests.support.jobs import ROOT

BIN = Path(sys.executable).parent

# The first words of a command, and why the tests don't run it.
NOT_RUN = {
    "caffeinate": "keeps a Mac awake",
    "cd": "has nothing to test",
    "docker": "needs a daemon and a registry",
    "kubectl": "needs a cluster",
    "mlx.distributed_config": "is MLX's, and needs Macs",
    "mlx_lm.fuse": "tests/jobs/test_mlx_lm.py has it",
    "mlx_lm.generate": "tests/jobs/test_mlx_lm.py has it",
    "ping": "needs a second machine",
    "pmset": "changes a Mac's settings",
    "python launch/examples/tiny_mlx_lm.py": "tests/jobs/test_mlx_lm.py has it",
    "rsync": "needs a second machine",
    "salloc": "needs Slurm",
    "sbatch": "needs Slurm; tests/jobs/test_launch_files.py has the script",
    "srun": "needs Slurm",
    "ssh": "needs a second machine",
    "ssh-copy-id": "needs a second machine",
    "ssh-keygen": "makes a key of the user",
    "sudo chown": "writes outside of the checkout",
    "sudo mkdir": "writes outside of the checkout",
    "sudo networksetup": "changes a Mac's network",
    "sudo scutil": "changes a Mac's name",
    "sudo systemsetup": "changes a Mac's settings",
    "sudo tests/support/virtual_cluster": "tests/jobs/test_launch_files.py has it",
    "swanlab sync": "sends to a server",
    "tensorboard": "serves until it is ended",
    "wandb sync": "sends to a server",
}


def check_mlxdist(words: list[str]) -> None:
    """`plan` runs, `run` prints its command line, and the parser takes the others."""
    command, *options = words[1:]
    if command == "plan":
        assert cli.main([command, *options]) == 0
    elif command == "run":
        assert cli.main([command, "--dry-run", *options]) == 0
        scripts = [word for word in options if word.endswith(".py")]
        assert [script for script in scripts if not Path(script).exists()] == []
    else:
        parse_mlxdist(words)


def parse_mlxdist(words: list[str]) -> None:
    parsed = cli.make_parser().parse_args(words[1:])
    assert parsed.command == words[1]


def check_suite(words: list[str]) -> None:
    suite.parse_arguments(words[1:])


def check_extras(words: list[str]) -> None:
    """`launch/setup test plot`, and `pip install 'mlxdist[plot]'`."""
    known = re.findall(r"^([a-z-]+) = ", (ROOT / "pyproject.toml").read_text(), re.M)
    is_setup = words[0].endswith("setup")
    named = words[1:] if is_setup else re.findall(r"\[(.*?)\]", " ".join(words))
    extras = {extra for text in named for extra in text.split(",")}
    assert extras <= set(known)


def check_quickstart(words: list[str]) -> None:
    source = (ROOT / "launch" / "train_lm.py").read_text()
    options = {*re.findall(r"add\(\"(--[a-z-]+)\"", source), "--ranks", "--help"}
    assert {word for word in words if word.startswith("--")} <= options


def check_pytest(words: list[str]) -> None:
    """Its files exist, and so do tests with the word after -k."""
    arguments = words[words.index("pytest") + 1 :]
    paths = [ROOT / word for word in arguments if word.startswith("tests/")]
    assert [path for path in paths if not path.exists()] == []
    if "-k" in arguments:
        word = arguments[arguments.index("-k") + 1]
        files = [file for path in paths for file in path.glob("test_*.py")]
        assert any(word in file.read_text() for file in files)


def check_module(words: list[str]) -> None:
    """A package of the checkout whose options its own tests have."""
    assert ROOT.joinpath(*words[2].split("."), "__main__.py").exists()


def check_program(words: list[str]) -> None:
    assert (BIN / Path(words[0]).name).exists()


def check_files(words: list[str]) -> None:
    """`mpirun python train.py` and `cp FILE FILE`: the first file exists."""
    files = [word for word in words if re.search(r"\w\.\w+$", word)]
    assert Path(files[0]).exists()


CHECKS = {
    r"(\.venv/bin/)?mlxdist ": check_mlxdist,
    r"\./launch/test\b": check_suite,
    r"\./launch/setup\b": check_extras,
    r"\./launch/quickstart\b": check_quickstart,
    r"pip (un)?install ": check_extras,
    r"\.venv/bin/python -m pytest ": check_pytest,
    r"\.venv/bin/python -m tests\.": check_module,
    r"\.venv/bin/(ruff|mypy|lint-imports|mkdocs)\b": check_program,
    r"(mpirun|cp) ": check_files,
}


def parts(command: str) -> list[str]:
    """Return the simple commands of `A=1 one && two >file`, without what is around."""
    simple = re.split(r" && ", command)
    return [re.sub(r"^(\w+=\S* )+|\s*>\s*\S+$", "", part) for part in simple]


def reason_not_run(command: str) -> str | None:
    """Return the entry of NOT_RUN for a command."""
    fitting = [
        words
        for words in NOT_RUN
        if shlex.split(command)[: len(words.split())] == words.split()
    ]
    return max(fitting, key=len, default=None)


def check(command: str) -> None:
    """Test a simple command; AssertionError where nothing says how."""
    tests = [test for start, test in CHECKS.items() if re.match(start, command)]
    assert tests or reason_not_run(command), "no entry of CHECKS or NOT_RUN fits it"
    for test in tests[:1]:
        test(shlex.split(command))
