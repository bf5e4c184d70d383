"""The commands of the pages: run, or parsed, or listed with a reason."""

import json
import re
import shlex

import mlx.core as mx
import pytest

from tests.docs import commands
from tests.support.doctor_report import doctor_report
from tests.support.jobs import ROOT
from tests.support.pages import Page, pages

RESULTS = Page("benchmarks/results/README.md")
COMMANDS = sorted(
    {
        part
        for page in pages()
        for line in page.commands()
        for part in commands.parts(line)
    }
)
QUOTED = sorted(
    {
        text
        for page in [*pages(), RESULTS]
        for text in page.quoted()
        if re.match(r"mlxdist \w+ [^|]*$", text) and "..." not in text
    }
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder like a checkout, with the files of a user that commands name."""
    for name in ("launch", "tests", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "train.py").touch()
    hosts = (ROOT / "launch" / "hosts" / "thunderbolt.json").read_text()
    (tmp_path / "hosts.json").write_text(hosts)
    (tmp_path / "jaccl.json").write_text(hosts)
    links = doctor_report({"bandwidth": 1e8, "latency": 1e-5})
    (tmp_path / "links.json").write_text(json.dumps(links))
    weights = {"layers.0.weight": mx.zeros((8, 8))}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_page_is_right(command, folder, capsys):
    commands.check(command)


@pytest.mark.parametrize("command", QUOTED)
def test_command_in_a_sentence_is_accepted_by_the_parser(command):
    commands.parse_mlxdist(shlex.split(command))


def test_reasons_not_to_run_are_used():
    used = {commands.reason_not_run(command) for command in COMMANDS}
    assert used - {None} == set(commands.NOT_RUN)


def test_unknown_command_is_refused():
    with pytest.raises(AssertionError, match="no entry"):
        commands.check("make all")


def test_parts_are_commands_without_variables_and_redirections():
    line = "cd /opt && PYTHON=python3.12 ./launch/setup plot >log"
    assert commands.parts(line) == ["cd /opt", "./launch/setup plot"]
