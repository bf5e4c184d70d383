"""Addresses of the data plane: which one a rank takes, and ports that are reserved."""

import errno
import ipaddress
import socket
from contextlib import ExitStack

import pytest

from mlxdist.launcher.interfaces import Interface
from mlxdist.world.addresses import (
    Address,
    choose_addresses,
    reported,
    reserve_port,
    route_problem,
)


def host(*addresses):
    """What a rank reports: en0, en1, ... with these addresses."""
    return [Address(f"en{index}", text) for index, text in enumerate(addresses)]


def test_reported_interfaces_leave_out_the_loopback():
    interfaces = [
        Interface(name, kind, ipaddress.IPv4Interface(address))
        for name, kind, address in [
            ("en0", "wired", "10.0.0.1/24"),
            ("lo0", "loopback", "127.0.0.1/8"),
        ]
    ]
    assert reported(interfaces) == [("en0", "10.0.0.1/24")]


TWO_WIRES = [
    host("10.9.0.1/24", "192.168.1.7/16"),
    host("10.9.0.2/24", "192.168.2.8/16"),
]


@pytest.mark.parametrize(
    ("every", "choices", "wanted"),
    [
        (TWO_WIRES, [], ["10.9.0.1", "10.9.0.2"]),
        (TWO_WIRES, ["192.168.0.0/16"], ["192.168.1.7", "192.168.2.8"]),
        (TWO_WIRES, ["en1"], ["192.168.1.7", "192.168.2.8"]),
        (TWO_WIRES, ["eth7", "10.9.0.0/24"], ["10.9.0.1", "10.9.0.2"]),
        # The hosts name their interfaces differently.
        (
            [host("10.9.0.1/24", "10.8.0.1/24"), host("10.8.0.2/24")],
            [],
            ["10.8.0.1", "10.8.0.2"],
        ),
        # Two ranks share the first host.
        ([TWO_WIRES[0], *TWO_WIRES], [], ["10.9.0.1", "10.9.0.1", "10.9.0.2"]),
        # A container's bridge has the same address on each host.
        (
            [
                host("172.17.0.1/16", "10.9.0.1/24"),
                host("172.17.0.1/16", "10.9.0.2/24"),
            ],
            [],
            ["10.9.0.1", "10.9.0.2"],
        ),
    ],
)
def test_addresses_are_in_the_first_network_of_all_hosts(every, choices, wanted):
    assert choose_addresses(every, choices) == tuple((ip,) for ip in wanted)


def test_addresses_without_a_common_network_raise_with_those_of_each_rank():
    every = [host("10.9.0.1/24"), host("10.8.0.2/24"), []]
    with pytest.raises(ValueError, match=r"mlxdist run --iface") as error:
        choose_addresses(every, [])
    assert "rank 0: en0 10.9.0.1/24; rank 1: en0 10.8.0.2/24; rank 2: none" in str(
        error.value
    )
    with pytest.raises(ValueError, match=r"no network among en3 in which all hosts"):
        choose_addresses(TWO_WIRES, ["en3"])


def test_reserved_port_takes_no_connections_until_the_owner_listens():
    with ExitStack() as stack:
        port = reserve_port("127.0.0.1", stack)
        assert reserve_port("127.0.0.1", stack) != port
        assert route_problem("127.0.0.1", port) is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
        server = stack.enter_context(socket.socket())
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # as MLX's ring does
            server.setsockopt(socket.SOL_SOCKET, option, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port), 5):
            server.accept()[0].close()


def test_reservation_at_an_address_of_another_host_raises_and_names_it():
    with ExitStack() as stack, pytest.raises(OSError, match=r"192\.0\.2\.1") as error:
        reserve_port("192.0.2.1", stack)
    assert error.value.errno == errno.EADDRNOTAVAIL


def test_route_to_an_address_that_has_none_is_a_problem():
    problem = route_problem("255.255.255.255", 9)
    assert problem is not None
    assert problem.startswith("255.255.255.255 can't be reached: ")
