"""The choice of the network for MPI's traffic."""

import ipaddress

import pytest

from mlxdist.launcher import network
from mlxdist.launcher.hosts import Host
from mlxdist.launcher.interfaces import Interface

INTERFACES = [
    Interface(name, kind, ipaddress.IPv4Interface(address))
    for name, kind, address in (
        ("bridge0", "thunderbolt", "169.254.33.7/16"),
        ("en7", "wired", "192.168.1.21/24"),
        ("en0", "wifi", "192.168.1.20/24"),
        ("lo0", "loopback", "127.0.0.1/8"),
    )
]


@pytest.mark.parametrize(
    ("remote", "name"),
    [
        ([["192.168.1.30"]], "en7"),  # wired before Wi-Fi, in the same network
        ([["192.168.1.30", "169.254.8.8"]], "bridge0"),  # as mac2.local resolves
        ([["192.168.1.30", "169.254.8.8"], ["192.168.1.31"]], "en7"),
        ([["169.254.8.8"], ["169.254.8.9"]], "bridge0"),
        ([["8.8.8.8"]], None),
        ([["192.168.1.30"], []], None),
        ([], None),
    ],
)
def test_best_interface_is_the_first_that_reaches_all_hosts(remote, name):
    best = network.best_interface(INTERFACES, remote)
    assert (best and best.name) == name


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ((["169.254.33.7"], ["169.254.8.8"]), "169.254.0.0/16"),
        ((["10.5.0.1"], ["10.5.0.2"]), "192.168.1.0/24"),  # of cables, not in all
        (([], []), "192.168.1.0/24"),
    ],
)
def test_mpi_network_has_the_addresses_of_the_file_or_of_the_names(addresses, expected):
    names = ("192.168.1.20", "192.168.1.30")
    hosts = [Host(n, 1, tuple(a)) for n, a in zip(names, addresses, strict=True)]
    assert network.mpi_network(hosts, None, INTERFACES) == expected


@pytest.mark.parametrize(
    "text", ["-x", "a b", "", "a;b", "1.2.3.4/99", "a/b", "é", "a" * 40, "::/0", "a,b"]
)
def test_check_choice_of_neither_name_nor_network_raises(text):
    with pytest.raises(ValueError, match="--iface"):
        network.check_choice(text)


@pytest.mark.parametrize(
    ("text", "checked"), [("bridge0", "bridge0"), ("10.0.0.7/24", "10.0.0.0/24")]
)
def test_check_choice_returns_a_name_or_a_network(text, checked):
    assert network.check_choice(text) == checked


@pytest.mark.parametrize(
    ("choice", "resolved"),
    [
        ("bridge0", "169.254.0.0/16"),
        ("192.168.1.7/24", "192.168.1.0/24"),
        ("192.168.0.0/16", "192.168.0.0/16"),
    ],
)
def test_resolve_network_returns_the_network_of_a_choice(choice, resolved):
    assert network.resolve_network(choice, INTERFACES) == resolved


@pytest.mark.parametrize("choice", ["en9", "10.0.0.0/24"])
def test_resolve_network_that_is_not_here_raises(choice):
    with pytest.raises(ValueError, match=r"--iface '.*no such inter.*it has bridge0"):
        network.resolve_network(choice, INTERFACES)


@pytest.mark.parametrize("choice", ["lo0", "127.0.0.0/8"])
def test_resolve_network_of_the_loopback_raises(choice):
    with pytest.raises(ValueError, match="reaches no other host"):
        network.resolve_network(choice, INTERFACES)


def test_resolve_network_without_known_interfaces_returns_the_choice():
    assert network.resolve_network("en9", []) == "en9"


@pytest.mark.parametrize("words", ["run -H a,b x.py", "doctor -H a,b", "test -H a,b"])
def test_iface_that_is_not_here_is_refused_by_every_command(
    words, main, no_programs, monkeypatch, capsys
):
    monkeypatch.setattr(network, "local_interfaces", lambda: INTERFACES)
    command, *rest = words.split()
    assert main(command, "--iface", "en9", *rest) == 2
    assert "it has bridge0 (thunderbolt, 169.254.33.7/16), " in capsys.readouterr().err


@pytest.mark.parametrize("words", ["run -n 2 x.py", "doctor", "test -n 2"])
def test_iface_on_one_machine_is_refused_by_every_command(words, main, capsys):
    command, *rest = words.split()
    assert main(command, "--iface", "lo", *rest) == 2
    assert "--iface is for several hosts" in capsys.readouterr().err
