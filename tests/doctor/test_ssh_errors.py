"""doctor/ssh_errors: messages of ssh and of remote shells."""

import pytest

from mlxdist.doctor.ssh_errors import classify


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("me@mac2: Permission denied (publickey).", "no key"),
        ("Host key verification failed.", "unknown host key"),
        (
            "ssh: Could not resolve hostname mac2: nodename nor servname provided, or "
            "not known",
            "unknown name",
        ),
        ("ssh: connect to host mac2 port 22: Connection refused", "refused"),
        ("ssh: connect to host x port 22: Connection timed out", "unreachable"),
        ("ssh: connect to host x port 22: No route to host", "unreachable"),
        ("zsh:1: no such file or directory: /venv/bin/python", "no python"),
        ("bash: line 1: /venv/bin/python: Permission denied", "no python"),
        ("sh: 1: /venv/bin/python: not found", "no python"),
        ("Killed", "unknown"),
    ],
)
def test_classify_names_the_problem_of_a_message(message, problem):
    assert classify(message) == problem
