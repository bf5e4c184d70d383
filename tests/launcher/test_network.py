"""Interfaces: what a machine says of them, which is chosen, and what is refused."""

import json
import subprocess

import pytest

from mlxdist import cli
from mlxdist.launcher import interfaces, network

MAC = {
    "ifconfig": """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether aa:bb:cc:dd:ee:ff
\tinet6 fe80::1%en0 prefixlen 64 secured scopeid 0xb
\tinet 192.168.1.20 netmask 0xffffff00 broadcast 192.168.1.255
\tstatus: active
en1: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 1500
\tmember of bridge0
\tstatus: active
en7: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.168.1.21 netmask 0xffffff00 broadcast 192.168.1.255
\tmedia: autoselect (1000baseT <full-duplex>)
\tstatus: active
en8: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.168.9.9 netmask 0xffffff00 broadcast 192.168.9.255
\tstatus: inactive
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 169.254.33.7 netmask 0xffff0000 broadcast 169.254.255.255
\tmember: en1 flags=3<LEARNING,DISCOVER>
\tstatus: active
bridge100: flags=8a63<UP,BROADCAST,SMART,RUNNING,ALLMULTI,SIMPLEX> mtu 1500
\tinet 192.168.64.1 netmask 0xffffff00 broadcast 192.168.64.255
utun3: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380
\tinet 100.64.0.9 --> 100.64.0.9 netmask 0xffffffff
""",
    "networksetup": """\

Hardware Port: Ethernet Adapter (en7)
Device: en7
Ethernet Address: aa:bb

Hardware Port: Wi-Fi
Device: en0
Ethernet Address: aa:bb:cc:dd:ee:ff

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 36:00

Hardware Port: Thunderbolt 1
Device: en1
Ethernet Address: 36:01
""",
}


def linux(*devices, wireless=()):
    listed = [
        {
            "ifname": name,
            "flags": ["UP"] if up else [],
            "operstate": "UP",
            "addr_info": [{"local": address, "prefixlen": 24}],
        }
        for name, address, up in devices
    ]
    return {"ip": json.dumps(listed), "wireless": list(wireless)}


def test_a_mac_s_interfaces():
    found = interfaces.parse(MAC)
    assert [(one.name, one.kind, one.network) for one in found] == [
        ("bridge0", "thunderbolt", "169.254.0.0/16"),
        ("en7", "wired", "192.168.1.0/24"),
        ("en0", "wifi", "192.168.1.0/24"),
        ("bridge100", "virtual", "192.168.64.0/24"),
        ("utun3", "virtual", "100.64.0.9/32"),
        ("lo0", "loopback", "127.0.0.0/8"),
    ]


def test_linux_interfaces():
    raw = linux(
        ("lo", "127.0.0.1", True),
        ("docker0", "172.17.0.1", True),
        ("wlp2s0", "192.168.1.5", True),
        ("radio", "192.168.2.5", True),
        ("eth1", "10.1.0.1", False),
        ("enp3s0", "10.0.0.1", True),
        ("thunderbolt0", "10.9.0.1", True),
        wireless=["radio"],
    )
    assert [(one.name, one.kind) for one in interfaces.parse(raw)] == [
        ("thunderbolt0", "thunderbolt"),
        ("enp3s0", "wired"),
        ("wlp2s0", "wifi"),
        ("radio", "wifi"),
        ("docker0", "virtual"),
        ("lo", "loopback"),
    ]
    assert interfaces.parse({}) == []


@pytest.mark.parametrize(
    ("others", "chosen"),
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
def test_the_best_interface_that_reaches_all(others, chosen):
    found = network.best_interface(interfaces.parse(MAC), others)
    assert (found and found.name) == chosen


def test_this_machine_has_interfaces():
    for _ in range(3):  # `ip` may be slow, or meet another job's interfaces going
        if any(one.kind == "loopback" for one in interfaces.local_interfaces()):
            return
    pytest.fail("no loopback interface was found")


@pytest.mark.parametrize(
    "text", ["-x", "a b", "", "a;b", "1.2.3.4/99", "a/b", "é", "a" * 40, "::/0", "a,b"]
)
def test_hostile_interfaces_are_refused(text):
    with pytest.raises(ValueError, match="--iface"):
        network.check_choice(text)


def test_interfaces_may_be_named_or_networks():
    assert network.check_choice("bridge0") == "bridge0"
    assert network.check_choice("10.0.0.7/24") == "10.0.0.0/24"


def test_the_network_of_an_interface():
    own = interfaces.parse(MAC)
    assert network.resolve_network("bridge0", own) == "169.254.0.0/16"
    assert network.resolve_network("192.168.1.7/24", own) == "192.168.1.0/24"
    assert network.resolve_network("192.168.0.0/16", own) == "192.168.0.0/16"
    for absent in ("en9", "10.0.0.0/24"):  # a slip of the pen would take another one
        with pytest.raises(ValueError, match=r"--iface '.*no such inter.*it has br"):
            network.resolve_network(absent, own)
    for loop in ("lo0", "127.0.0.0/8"):
        with pytest.raises(ValueError, match="reaches no other host"):
            network.resolve_network(loop, own)
    assert network.resolve_network("en9", []) == "en9"  # a machine that tells nothing


@pytest.mark.parametrize("words", ["run -H a,b x.py", "doctor -H a,b", "test -H a,b"])
def test_an_interface_that_is_not_there_is_refused(words, monkeypatch, capsys):
    def never(*_args, **_options):
        raise AssertionError("something was started")

    monkeypatch.setattr(network, "local_interfaces", lambda: interfaces.parse(MAC))
    monkeypatch.setattr(subprocess, "Popen", never)
    command, *rest = words.split()
    assert cli.main([command, "--iface", "en9", *rest]) == 2
    assert "it has bridge0 (thunderbolt, 169.254.33.7/16), " in capsys.readouterr().err


@pytest.mark.parametrize("words", ["run -n 2 x.py", "doctor", "test -n 2"])
def test_one_machine_needs_no_interface(words, capsys):
    command, *rest = words.split()
    assert cli.main([command, "--iface", "lo", *rest]) == 2
    assert "--iface is for several hosts" in capsys.readouterr().err
