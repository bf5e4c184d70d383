"""Hosts of `-H`: parsed, merged, and refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.launcher import host_files, hosts
from mlxdist.launcher.hosts import Host

# No host names. Each would otherwise reach a command line of mpirun or ssh.
HOSTILE = [
    "",
    " ",
    "-oProxyCommand=touch{marker}",
    "--prtemca",
    "-",
    "a b",
    "a;touch {marker}",
    "a$(touch {marker})",
    "`touch {marker}`",
    "a|b",
    "a&b",
    "a>b",
    "a\nb",
    "a\n",
    "\nmac1",
    "a\tb",
    "a\rb",
    "a\0b",
    "a'b",
    'a"b',
    "a\\b",
    "../a",
    "/etc/passwd",
    "a/b",
    "~a",
    "*",
    "?",
    "[a]",
    "{{a,b}}",
    "a%b",
    "a#b",
    "a=b",
    "a+b",
    "mäc",
    "mac\uff11",  # a full-width digit
    "m\u0430c",  # a Cyrillic letter
    "mac\u200b1",
    "mac\u202e1",
    "a..b",
    ".a",
    "a.",
    "a-.b",
    "a.-b",
    "root@mac1",
    "-l root@mac1",
    "::1",
    "[::1]",
    "1.2.3",
    "1.2.3.4.5",
    "300.1.1.1",
    "01.2.3.4",
    "a" * 64,
    ".".join(["a" * 60] * 5),
]
SLOTS = [
    "0",
    "-1",
    "+1",
    "1.5",
    "1e3",
    "x",
    "",
    " 2",
    "2 ",
    "\u0663",
    "4097",
    "9" * 400,
]
NAMES = ["", "A B", "1A", "A-B", "A;B", "A\nB", "-x", "Ä", "A\0", "$A", "A.B", "A="]
RESERVED = ["PMIX_RANK", "PRTE_MCA_x", "OMPI_COMM_WORLD_SIZE", "MLXDIST_JOB1"]


@pytest.mark.parametrize("name", HOSTILE)
def test_check_name_of_a_hostile_name_raises(name, main, no_programs, tmp_path, capsys):
    name = name.format(marker=tmp_path / "marker")
    script = tmp_path / "script.py"
    script.touch()
    with pytest.raises(ValueError, match=r"wanted|user's name"):
        hosts.check_name(name)
    host_file = tmp_path / "hosts.json"
    host_file.write_text(json.dumps([{"ssh": "mac1"}, {"ssh": name}]))
    for option in (f"-H=mac1,{name}", f"--hostfile={host_file}"):
        assert main("run", option, script) == 2, option
        assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("slots", SLOTS)
def test_parse_hosts_with_invalid_slots_raises(slots, tmp_path):
    if slots.strip() == slots:
        with pytest.raises(ValueError, match="wanted 1 to 4096"):
            hosts.parse_hosts(f"mac1:{slots}")
        (tmp_path / "hosts").write_text(f"mac1 slots={slots}")
        with pytest.raises(ValueError, match=r"line 1: .*wanted 1 to 4096"):
            host_files.read_hosts(tmp_path / "hosts")


def test_parse_hosts_whose_slots_add_up_to_too_many_raises():
    with pytest.raises(ValueError, match="wanted 1 to 4096"):
        hosts.parse_hosts("mac1:4096,mac1:1")


@pytest.mark.parametrize("name", [*NAMES, *RESERVED])
def test_check_variable_with_an_invalid_or_reserved_name_raises(name):
    with pytest.raises(ValueError, match="environment variable"):
        hosts.check_variable(name, "x")


def test_check_variable_with_a_zero_byte_raises():
    with pytest.raises(ValueError, match="zero byte"):
        hosts.check_variable("A", "x\0y")


@given(st.text(max_size=20))
def test_check_name_accepts_only_harmless_characters(name):
    try:
        hosts.check_name(name)
    except ValueError:
        return
    assert name.isascii()
    assert not name.startswith(("-", "."))
    assert not set(name) - set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mac1", (Host("mac1"),)),
        ("mac1:2, mac2.local", (Host("mac1", 2), Host("mac2.local"))),
        ("10.0.0.1:3", (Host("10.0.0.1", 3),)),
        ("a:2,b,a", (Host("a", 3), Host("b"))),
        ("localhost:4", (Host("localhost", 4),)),
    ],
)
def test_parse_hosts_returns_each_host_with_its_slots(text, expected):
    assert hosts.parse_hosts(text).hosts == expected


def test_parse_hosts_counts_repeated_names():
    assert hosts.parse_hosts("a:2,b,A").repeated == (("a", 2),)


@pytest.mark.parametrize(
    "text", ["localhost,mac1", "mac1,127.0.0.1", "mac1,LocalHost", "127.0.0.2,a"]
)
def test_parse_hosts_with_localhost_among_others_raises(text):
    with pytest.raises(ValueError, match="as the others reach it"):
        hosts.parse_hosts(text)


def test_assign_ranks_fills_the_hosts_in_order():
    two = hosts.parse_hosts("a:2,b:3").hosts
    assert hosts.assign_ranks(two, 4) == ["a", "a", "b", "b"]


def test_assign_ranks_with_too_few_slots_raises():
    two = hosts.parse_hosts("a:2,b:3").hosts
    with pytest.raises(ValueError, match=r"6 ranks on 5 slots \(a:2,b:3\)"):
        hosts.assign_ranks(two, 6)
