"""doctor/survey: answers of hosts that can't be asked."""

from mlxdist.doctor import survey
from mlxdist.launcher import Host


def test_ask_hosts_without_ssh_names_the_program(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("PRTE_MCA_plm_ssh_agent", raising=False)
    (answer,) = survey.ask_hosts([Host("192.0.2.1")], "/venv/bin/python")
    assert (answer.report, answer.is_local) == (None, False)
    assert answer.error == "ssh: No such file or directory"
    assert answer.problem == "no ssh client"


def test_ask_hosts_without_the_interpreter_on_this_machine_says_so():
    (answer,) = survey.ask_hosts([], "/none/python")
    assert (answer.host, answer.is_local) == ("localhost", True)
    assert answer.error == "/none/python: No such file or directory"
    assert answer.problem == "no python"


def test_ask_hosts_with_a_failing_agent_classifies_its_last_line(tmp_path, monkeypatch):
    agent = tmp_path / "agent"
    refused = "ssh: connect to host $1 port 22: Connection refused"
    agent.write_text(f'#!/bin/sh\necho banner\necho "{refused}" >&2\nexit 255\n')
    agent.chmod(0o755)
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", str(agent))
    (answer,) = survey.ask_hosts([Host("192.0.2.1")], "/venv/bin/python")
    assert answer.error == refused.replace("$1", "192.0.2.1")
    assert answer.problem == "refused"
