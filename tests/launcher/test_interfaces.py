"""Interfaces, from the output of macOS's and Linux's programs."""

import json

import pytest

from mlxdist.launcher import interfaces

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


def linux_output(*devices, wireless=()):
    entries = [
        {
            "ifname": name,
            "flags": ["UP"] if up else [],
            "operstate": "UP",
            "addr_info": [{"local": address, "prefixlen": 24}],
        }
        for name, address, up in devices
    ]
    return {"ip": json.dumps(entries), "wireless": list(wireless)}


def test_parse_of_macos_output_returns_interfaces_best_first():
    parsed = interfaces.parse(MAC)
    assert [(one.name, one.kind, one.network) for one in parsed] == [
        ("bridge0", "thunderbolt", "169.254.0.0/16"),
        ("en7", "wired", "192.168.1.0/24"),
        ("en0", "wifi", "192.168.1.0/24"),
        ("bridge100", "virtual", "192.168.64.0/24"),
        ("utun3", "virtual", "100.64.0.9/32"),
        ("lo0", "loopback", "127.0.0.0/8"),
    ]


def test_parse_of_linux_output_returns_interfaces_best_first():
    output = linux_output(
        ("lo", "127.0.0.1", True),
        ("docker0", "172.17.0.1", True),
        ("wlp2s0", "192.168.1.5", True),
        ("radio", "192.168.2.5", True),
        ("eth1", "10.1.0.1", False),
        ("enp3s0", "10.0.0.1", True),
        ("thunderbolt0", "10.9.0.1", True),
        wireless=["radio"],
    )
    assert [(one.name, one.kind) for one in interfaces.parse(output)] == [
        ("thunderbolt0", "thunderbolt"),
        ("enp3s0", "wired"),
        ("wlp2s0", "wifi"),
        ("radio", "wifi"),
        ("docker0", "virtual"),
        ("lo", "loopback"),
    ]


def test_parse_without_output_returns_no_interface():
    assert interfaces.parse({}) == []


def test_local_interfaces_include_the_loopback():
    for _ in range(3):  # `ip` fails if an interface of another job disappears
        if any(one.kind == "loopback" for one in interfaces.local_interfaces()):
            return
    pytest.fail("no loopback interface was found")
