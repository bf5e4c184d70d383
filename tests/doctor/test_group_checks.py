"""doctor/group_checks: host names and networks of several hosts."""

import pytest

from mlxdist.doctor import diagnose
from tests.support.machines import (
    LINUX,
    MAC,
    PYTHON,
    answer,
    ifconfig,
    problems,
    problems_beside_mac1,
)


@pytest.mark.parametrize(
    ("system", "command"),
    [
        (MAC, "ssh -t 10.0.0.2 sudo scutil --set HostName mac1-2"),
        (LINUX, "ssh -t 10.0.0.2 sudo hostnamectl set-hostname mac1-2"),
    ],
)
def test_check_host_names_equal_names_are_a_failure(system, command):
    same_name = answer("10.0.0.2", name="mac1", system=system)
    (problem,) = problems_beside_mac1(same_name)
    assert (problem.check, problem.level) == ("host names", "failure")
    assert problem.message == "mac1, 10.0.0.2 have the same host name, mac1"
    assert problem.remedy == command


def test_check_shared_network_none_is_a_warning():
    other = answer("mac3", network=ifconfig("en0", "10.0.0.2"))
    tunnels = [
        answer(f"mac{n}", network=ifconfig("utun3", f"10.0.1.{n}")) for n in (1, 2)
    ]
    found = problems_beside_mac1(answer("mac2"), other) + problems(*tunnels)
    assert [(f.check, f.level) for f in found] == [("shared network", "warning")] * 2


def test_check_shared_network_named_one_must_have_all_hosts():
    def finding(network, second):
        findings = diagnose([answer("mac1"), second], PYTHON, network)
        return next(f for f in findings if f.check == "shared network")

    healthy = answer("mac2")
    assert finding("169.254.0.0/16", healthy).level == "ok"
    lines = ifconfig("en0", "10.0.0.2")["ifconfig"]
    lines += ifconfig("bridge0", "169.254.0.2")["ifconfig"]
    both = answer("mac2", network={"ifconfig": lines})
    assert finding("169.254.0.0/16", both).level == "ok"
    # The name of an interface, given on a machine that does not list its own.
    assert finding("bridge0", healthy).level == "ok"
    outside = answer("mac2", network=ifconfig("en0", "10.0.0.2"))
    problem = finding("169.254.0.0/16", outside)
    assert problem.level == "failure"
    assert problem.message.startswith("mac2 not in 169.254.0.0/16: mac1: bridge0 (")
