"""Checks of Macs, on samples of what macOS's programs print.

The samples are from public pages: `pmset -g` and `pmset -g therm` from notes and tests
in repositories on GitHub (2026), whose separators are spaces or tabs; `ibv_devices`
from MLX's docs/src/usage/distributed.rst (M3 Ultra) and from jundot/omlx #3037 (a Mac
with Thunderbolt 4, which has none); `rdma_ctl status` from MLX #3777 and omlx #3037;
`ifconfig` after what MLX #3207 takes apart. None was taken by this project on a Mac:
"disabled", and a `powermode` of 1, are unverified.
"""

import pytest

from mlxdist.doctor import diagnose, mac_output
from mlxdist.launcher.hosts import Host, HostList
from tests.support.machines import LINUX, PYTHON, answer

PMSET = """\
System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatefile        /var/vm/sleepimage
 powernap             1
 networkoversleep     0
 disksleep            10
 sleep                1 (sleep prevented by coreaudiod, useractivityd, powerd)
 hibernatemode        3
 ttyskeepawake        1
 displaysleep         10
 tcpkeepalive         1
 lowpowermode         0
 womp                 1
"""
AWAKE = " sleep\t\t1 (sleep prevented by caffeinate)\n displaysleep\t\t10 (display "
AWAKE += "sleep prevented by Tally)\n lowpowermode\t\t1\n"
COOL = (
    "Note: No thermal warning level has been recorded\n"
    "Note: No performance warning level has been recorded\n"
)
HOT = f"{COOL}2026-08-20 05:08:37 -0700 CPU Power notify\n"
HOT += "\tCPU_Scheduler_Limit \t= 100\n\tCPU_Available_CPUs \t= 12\n"
HOT += "\tCPU_Speed_Limit \t= 72\n"
DEVICES = """\
    device                 node GUID
    ------              ----------------
    rdma_en2            8096a9d9edbaac05
    rdma_en3            8196a9d9edbaac05
    rdma_en5            8396a9d9edbaac05
"""
NO_DEVICES = "device          node GUID\n------          ----------------\n"
BRIDGE = """\
en2: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 1500
\tether 36:00:00:00:00:00
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\toptions=63<RXCSUM,TXCSUM,TSO4,TSO6>
\tmember: en2 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 8 priority 0 path cost 0
\tmember: en3 flags=3<LEARNING,DISCOVER>
\tstatus: inactive
utun0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380
"""


def test_power_settings_have_values_and_what_prevents_sleep():
    settings = mac_output.power_settings(PMSET)
    assert settings["sleep"] == ("1", ("coreaudiod", "useractivityd", "powerd"))
    assert settings["displaysleep"] == ("10", ())
    assert mac_output.power_settings(AWAKE)["displaysleep"] == ("10", ("Tally",))
    assert mac_output.power_settings("") == {}


@pytest.mark.parametrize(
    ("therm", "limit"),
    [("", 100), (COOL, 100), (HOT.replace("72", "100"), 100), (HOT, 72)],
)
def test_speed_limit_is_100_unless_there_is_one(therm, limit):
    assert mac_output.speed_limit(therm) == limit


@pytest.mark.parametrize(
    ("text", "devices"),
    [(DEVICES, ["rdma_en2", "rdma_en3", "rdma_en5"]), (NO_DEVICES, []), ("", [])],
)
def test_rdma_devices_are_those_listed(text, devices):
    assert mac_output.rdma_devices(text) == devices


@pytest.mark.parametrize(
    ("ifconfig", "members"),
    [
        (BRIDGE, ["en2", "en3"]),
        (BRIDGE.replace("8863<UP,", "8862<"), []),
        (BRIDGE.replace("member: ", "x: "), []),
        (BRIDGE.replace("bridge0", "bridge100"), []),
        ("", []),
    ],
)
def test_bridge_members_are_those_of_a_bridge_that_is_up(ifconfig, members):
    assert mac_output.bridge_members(ifconfig) == members


def found(check, *, backend=None, devices=(), **changes):
    """Return the findings of a check on one Mac, as level, message and remedy."""
    named = HostList((Host("mac1", 1, (), devices),), backend=backend)
    findings = diagnose([answer("mac1", **changes)], PYTHON, None, named)
    return [(f.level, f.message, f.remedy) for f in findings if f.check == check]


@pytest.mark.parametrize(
    ("check", "changes", "level", "message", "remedy"),
    [
        ("sleep", {"mac__pmset": PMSET}, "warning", "after 1 min", "caffeinate -is"),
        ("sleep", {"mac__pmset": AWAKE}, "ok", "not during a job", ""),
        ("display", {"mac__pmset": PMSET}, "ok", "sleeps after 10 min", ""),
        ("display", {"mac__pmset": AWAKE}, "warning", "on by Tally", "displaysleepnow"),
        (
            "display",
            {"mac__pmset": " displaysleep         0\n"},
            "warning",
            "never sleeps",
            "displaysleepnow",
        ),
        ("power mode", {"mac__pmset": PMSET}, "ok", "not low", ""),
        ("power mode", {"mac__pmset": AWAKE}, "warning", "Low Power", "lowpowermode 0"),
        (
            "power mode",
            {"mac__pmset": " powermode            1\n"},
            "warning",
            "Low Power",
            "lowpowermode 0",
        ),
        ("heat", {"mac__therm": COOL}, "ok", "no limit", ""),
        ("heat", {"mac__therm": HOT}, "warning", "to 72%", "cool"),
        (
            "MLX_METAL_FAST_SYNCH",
            {"variables": {"MLX_METAL_FAST_SYNCH": "1"}},
            "warning",
            "may deadlock",
            "unset MLX_METAL_FAST_SYNCH",
        ),
    ],
)
def test_mac_checks_of_a_long_job(check, changes, level, message, remedy):
    ((found_level, found_message, found_remedy),) = found(check, **changes)
    assert found_level == level
    assert message in found_message
    assert remedy in found_remedy


TO_EN3 = ((), ("rdma_en3",))


@pytest.mark.parametrize(
    ("check", "changes", "level", "message"),
    [
        ("jaccl", {"packages__mlx": "0.32.1"}, "failure", "mlx is 0.32.1, too old"),
        ("jaccl", {"macos": "26.1"}, "failure", "26.1, and RDMA over Thunderbolt"),
        ("jaccl", {"macos": "26.2.1"}, "warning", "26.3 has larger buffers"),
        ("jaccl", {"macos": "", "system": LINUX}, "failure", "Linux 6.1 x86_64, and"),
        ("RDMA", {"mac__rdma_ctl": "disabled\n"}, "failure", "status: disabled"),
        ("RDMA", {"mac__rdma_ctl": ""}, "failure", "status: no answer"),
        ("RDMA", {"mac__ibv_devices": NO_DEVICES}, "failure", "Thunderbolt 4 has none"),
        (
            "RDMA",
            {"mac__ibv_devices": DEVICES.replace("en3", "en4")},
            "failure",
            "has rdma_en3, and there are rdma_en2, rdma_en4, rdma_en5",
        ),
        ("RDMA", {}, "ok", "rdma_en2, rdma_en3, rdma_en5"),
        (
            "Thunderbolt bridge",
            {"network__ifconfig": BRIDGE},
            "warning",
            "with en2, en3",
        ),
        ("Thunderbolt bridge", {"network__ifconfig": ""}, "ok", "off"),
    ],
)
def test_mac_checks_of_jaccl(check, changes, level, message):
    healthy = {
        "macos": "26.3",
        "mac__rdma_ctl": "enabled\n",
        "mac__ibv_devices": DEVICES,
    }
    ((found_level, found_message, remedy),) = found(
        check, backend="jaccl", devices=TO_EN3, **{**healthy, **changes}
    )
    assert found_level == level
    assert message in found_message
    assert bool(remedy) == (level != "ok")


def test_mac_checks_of_jaccl_are_made_for_its_ring_too_and_left_out_without_it():
    assert found("RDMA", backend="jaccl-ring")
    changes = {"macos": "15.0", "mac__rdma_ctl": "", "packages__mlx": "0.32.1"}
    for check in ("jaccl", "RDMA", "Thunderbolt bridge"):
        assert found(check, backend="ring", **changes) == []


@pytest.mark.parametrize(
    ("backend", "level"),
    [("jaccl", "failure"), ("jaccl-ring", "failure"), (None, "warning")],
)
def test_host_file_checks_name_every_problem_of_the_devices(backend, level):
    rows = (((), ("rdma_en2",)), ((), ()))
    hosts = tuple(Host(n, 1, (), row) for n, row in zip(("a", "b"), rows, strict=True))
    findings = list(diagnose([], PYTHON, None, HostList(hosts, backend=backend)))
    finding, *others = findings
    assert [other.level for other in others] == ["ok"] * (backend is not None)
    assert (finding.check, finding.level) == ("host file", level)
    assert "host a has rdma_en2 in rdma for b, which has null for a" in finding.message
    assert "mlx.distributed_config" in finding.remedy


def test_host_file_checks_of_a_mesh_and_of_variables():
    rows = (((), ("rdma_en2",)), (("rdma_en2",), ()))
    hosts = tuple(Host(n, 1, (), row) for n, row in zip(("a", "b"), rows, strict=True))
    variables = (("MLX_METAL_FAST_SYNCH", "1"),)
    findings = diagnose([], PYTHON, None, HostList(hosts, variables, backend="jaccl"))
    assert [(f.level, f.message[:20]) for f in findings] == [
        ("ok", "RDMA between 2 hosts"),
        ("ok", "data goes over jaccl"),
        ("warning", "MLX_METAL_FAST_SYNCH"),
    ]
