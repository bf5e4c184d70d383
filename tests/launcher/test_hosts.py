"""Hosts and interfaces: what is read, what is chosen, and what is refused."""

import json
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist import cli
from mlxdist.launcher import hosts
from mlxdist.launcher.hosts import Host

# What is no host name. Each would otherwise reach a command line of mpirun or ssh.
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
def test_hostile_names_are_refused(name, tmp_path, monkeypatch, capsys):
    def never(*_args, **_options):
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr(os, "system", never)
    name = name.format(marker=tmp_path / "marker")
    script = tmp_path / "script.py"
    script.touch()
    with pytest.raises(ValueError, match=r"wanted|user's name"):
        hosts.check_name(name)
    listed = tmp_path / "hosts.json"
    listed.write_text(json.dumps([{"ssh": "mac1"}, {"ssh": name}]))
    for options in (f"-H=mac1,{name}", f"--hostfile={listed}"):
        try:
            code = cli.main(["run", options, str(script)])
        except SystemExit as leaving:
            code = leaving.code
        assert code == 2, options
        assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("slots", SLOTS)
def test_hostile_slots_are_refused(slots, tmp_path):
    if slots.strip() == slots:
        with pytest.raises(ValueError, match="wanted 1 to 4096"):
            hosts.parse_hosts(f"mac1:{slots}")
        (tmp_path / "hosts").write_text(f"mac1 slots={slots}")
        with pytest.raises(ValueError, match=r"line 1: .*wanted 1 to 4096"):
            hosts.read_hosts(tmp_path / "hosts")
    with pytest.raises(ValueError, match="wanted 1 to 4096"):
        hosts.parse_hosts("mac1:4096,mac1:1")


@pytest.mark.parametrize("name", [*NAMES, *RESERVED])
def test_hostile_variables_are_refused(name):
    with pytest.raises(ValueError, match="environment variable"):
        hosts.check_variable(name, "x")
    with pytest.raises(ValueError, match="zero byte"):
        hosts.check_variable("A", "x\0y")


@pytest.mark.parametrize(
    "name",
    [
        *("LD_PRELOAD", "ld_preload", "DYLD_INSERT_LIBRARIES", "PATH", "HOME", "ENV"),
        *("BASH_ENV", "SHELLOPTS", "PS4", "PYTHONPATH", "PYTHONSTARTUP", "TMPDIR"),
        *("OMPI_MCA_plm_ssh_agent", "OMPI_MCA_mca_base_component_path", "OPAL_PREFIX"),
        *("MPI4PY_LIBMPI", "MLX_MPI_LIBNAME", "MLX_PTX_CACHE_DIR", "MLXDIST_JOB"),
        *("OPENSSL_CONF", "COMPILER_PATH", "FI_PROVIDER_PATH", "SSH_ASKPASS", "A B"),
        *("PRTE_MCA_plm_ssh_agent", "PMIX_MCA_x", "pmix_x", "MLX_METAL_x", "MLX_MAX_"),
    ],
)
def test_a_host_file_s_variables_name_no_code(name, tmp_path, capsys):
    path, script = tmp_path / "hosts.json", tmp_path / "x.py"
    (tmp_path / "agent").write_text(f"#!/bin/sh\ntouch {tmp_path}/marker\n")
    (tmp_path / "agent").chmod(0o755)
    script.touch()
    fine = {"MLX_METAL_FAST_SYNCH": "1", "OMP_NUM_THREADS": "2", "MLX_ENABLE_TF32": "="}
    envs = [f"{key}={value}" for key, value in fine.items()]
    told = {"hosts": [{"ssh": "localhost"}], "envs": envs}
    path.write_text(json.dumps({**told, "envs": [*envs, f"{name}={tmp_path}/agent"]}))
    assert cli.main(["run", f"--hostfile={path}", str(script)]) == 2
    assert f"{path}: environment variable" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()
    path.write_text(json.dumps(told))
    assert hosts.read_hosts(path).variables == tuple(fine.items())


@given(st.text(max_size=20))
def test_whatever_passes_is_harmless(name):
    try:
        hosts.check_name(name)
    except ValueError:
        return
    assert name.isascii()
    assert not name.startswith(("-", "."))
    assert not set(name) - set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
    )


@given(st.text(max_size=60) | st.from_regex(r"[\[{].{0,40}[\]}]", fullmatch=True))
def test_any_text_is_a_host_file_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "hosts"
    path.write_text(text, errors="ignore")
    try:
        read = hosts.read_hosts(path)
    except ValueError:
        return
    assert read.hosts
    assert all(hosts.check_name(one.name) for one in read.hosts)


def test_lists_of_hosts():
    assert hosts.parse_hosts("mac1").hosts == (Host("mac1"),)
    assert hosts.parse_hosts("mac1:2, mac2.local").hosts == (
        Host("mac1", 2),
        Host("mac2.local"),
    )
    assert hosts.parse_hosts("10.0.0.1:3").hosts == (Host("10.0.0.1", 3),)
    assert hosts.parse_hosts("a:2,b,a").hosts == (Host("a", 3), Host("b"))
    assert hosts.parse_hosts("localhost:4").hosts == (Host("localhost", 4),)
    for text in ("localhost,mac1", "mac1,127.0.0.1", "mac1,LocalHost", "127.0.0.2,a"):
        with pytest.raises(ValueError, match="as the others reach it"):
            hosts.parse_hosts(text)


def test_open_mpi_s_host_file(tmp_path):
    (tmp_path / "hosts").write_text(
        "# the cluster\n\nmac1 slots=2  # one\n\tmac2   slots=1 max_slots=4\r\nmac3\n"
    )
    assert hosts.read_hosts(tmp_path / "hosts") == hosts.HostList(
        (Host("mac1", 2), Host("mac2"), Host("mac3"))
    )
    for text, why in (
        ("", "names no host"),
        ("mac1 slot=2", "line 1: found 'slot=2'"),
        ("mac1\nmac2 2", "line 2: found '2'"),
        ("mac1 -x A", "found '-x'"),
        ("mac1:2", "found 'mac1:2', wanted: NAME slots=NUMBER"),
        ("mac1 slots=2 max_slots=1", "slots=2 above max_slots=1"),
        ("\n".join(f"mac{i}" for i in range(4097)), "4097 hosts; wanted at most"),
        ("#" * 2**22 + "#", "is larger than"),
    ):
        (tmp_path / "hosts").write_text(text)
        with pytest.raises(ValueError, match=why):
            hosts.read_hosts(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xef\xbb\xbfmac1 slots=2\r\nMAC1\r\n")
    assert hosts.read_hosts(tmp_path / "hosts").hosts == (Host("mac1", 3),)
    (tmp_path / "hosts").write_bytes(b"mac1\xff")
    with pytest.raises(ValueError, match="not a text file"):
        hosts.read_hosts(tmp_path / "hosts")


def test_mlx_s_host_file(tmp_path):
    path = tmp_path / "hosts.json"
    listed = [{"ssh": "mac1", "ips": ["10.0.0.1"], "rdma": [None]}, {"ssh": "mac2"}]
    wanted = (Host("mac1", 1, ("10.0.0.1",)), Host("mac2"))
    path.write_text(json.dumps(listed))
    assert hosts.read_hosts(path) == hosts.HostList(wanted)
    path.write_text(
        json.dumps({"hosts": listed, "envs": ["MLX_MAX_A=b=c"], "backend": "any"})
    )
    assert hosts.read_hosts(path) == hosts.HostList(wanted, (("MLX_MAX_A", "b=c"),))
    path.write_text(json.dumps([*listed, listed[0]]))  # once for each rank
    assert hosts.read_hosts(path).hosts[0] == Host("mac1", 2, ("10.0.0.1",))
    path.write_text(json.dumps([{"ssh": "mac1", "slots": 3}, {"ssh": "mac2"}]))
    assert hosts.read_hosts(path).hosts == (Host("mac1", 3), Host("mac2"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("[", "Expecting"),
        ([], "wanted a list"),
        ({}, "wanted a list"),
        ({"hosts": "mac1"}, "wanted a list"),
        (["mac1"], "wanted {"),
        ([{"ips": []}], "host None"),
        ([{"ssh": ["mac1"]}], "host "),
        ([{"ssh": "mac1", "ips": "10.0.0.1"}], "wanted {"),
        ([{"ssh": "mac1", "ips": ["::1"]}], "wanted IPv4"),
        ([{"ssh": "mac1", "ips": [1]}], "wanted IPv4"),
        ([{"ssh": "mac1", "ips": ["-x"]}], "wanted IPv4"),
        *(
            ([{"ssh": "mac1", "slots": bad}], "slots")
            for bad in (0, -1, 4097, 1.5, "2", True, None, [2])
        ),
        ({"hosts": [{"ssh": "a"}], "backend": "jaccl"}, "is started with mlx.launch"),
        ({"hosts": [{"ssh": "a"}], "envs": "A=b"}, "wanted a list"),
        ({"hosts": [{"ssh": "a"}], "envs": ["A"]}, "wanted NAME=VALUE"),
        ({"hosts": [{"ssh": "a"}], "envs": ["A B=c"]}, "environment variable"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_broken_json(tmp_path, data, why):
    path = tmp_path / "hosts.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(ValueError, match=why) as raised:
        hosts.read_hosts(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "times"), [("mac1:3,mac2", 1), ("mac1,mac2,mac1:2", 2)]
)
def test_a_host_that_is_named_twice_is_told(text, times, tmp_path, capsys):
    (tmp_path / "lines").write_text(text.replace(":", " slots=").replace(",", "\n"))
    for options in (["-H", text], ["--hostfile", str(tmp_path / "lines")]):
        assert cli.main(["run", "--dry-run", *options, "x.py"]) == 0
        told = capsys.readouterr()
        assert "--host mac1:3,mac2:1" in told.out
        twice = "warning: mac1 is named 2 times, and takes 3 ranks"
        assert told.err.count(twice) == times - 1


def test_ranks_fill_the_hosts_in_order():
    some = hosts.parse_hosts("a:2,b:3").hosts
    assert hosts.assign_ranks(some, 4) == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match=r"6 ranks on 5 slots \(a:2,b:3\)"):
        hosts.assign_ranks(some, 6)
