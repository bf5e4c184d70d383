"""Host files: Open MPI's lines and MLX's JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx._distributed_utils.common import Hostfile

from mlxdist.launcher import host_files, hosts
from mlxdist.launcher.hosts import Host


@given(st.text(max_size=60) | st.from_regex(r"[\[{].{0,40}[\]}]", fullmatch=True))
def test_read_hosts_of_any_text_returns_hosts_or_raises(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "hosts"
    path.write_text(text, errors="ignore")
    try:
        read = host_files.read_hosts(path)
    except ValueError:
        return
    assert read.hosts
    assert all(hosts.check_name(host.name) for host in read.hosts)


# Open MPI's host files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"# the cluster\n\nmac1 slots=2  # one\n"
            b"\tmac2   slots=1 max_slots=4\r\nmac3\n",
            (Host("mac1", 2), Host("mac2"), Host("mac3")),
        ),
        (b"\xef\xbb\xbfmac1 slots=2\r\nMAC1\r\n", (Host("mac1", 3),)),
    ],
)
def test_read_hosts_of_open_mpis_format_returns_hosts(content, expected, tmp_path):
    (tmp_path / "hosts").write_bytes(content)
    assert host_files.read_hosts(tmp_path / "hosts").hosts == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no host"),
        (b"mac1 slot=2", "line 1: found 'slot=2'"),
        (b"mac1\nmac2 2", "line 2: found '2'"),
        (b"mac1 -x A", "found '-x'"),
        (b"mac1:2", "found 'mac1:2', wanted: NAME slots=NUMBER"),
        (b"mac1 slots=2 max_slots=1", "slots=2 above max_slots=1"),
        (b"\n".join(b"mac%d" % i for i in range(4097)), "4097 hosts; wanted at most"),
        (b"#" * 2**22 + b"#", "is larger than"),
        (b"mac1\xff", "not a text file"),
    ],
    ids=lambda value: value[:20],
)
def test_read_hosts_of_an_invalid_file_raises(content, message, tmp_path):
    (tmp_path / "hosts").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        host_files.read_hosts(tmp_path / "hosts")


# MLX's host files

ENTRIES = [{"ssh": "mac1", "ips": ["10.0.0.1"], "rdma": []}, {"ssh": "mac2"}]
HOSTS = (Host("mac1", 1, ("10.0.0.1",)), Host("mac2"))


def entry(number, ips, rdma, **others):
    return {"ssh": f"mac{number}", "ips": ips, "rdma": rdma, **others}


# What MLX's mlx.distributed_config writes: prepare_ethernet_hostfile, configure_ring,
# configure_jaccl and configure_jaccl_ring in mlx/_distributed_utils/config.py.
ETHERNET = {
    "backend": "",
    "envs": [],
    "hosts": [entry(1, ["10.0.0.1"], []), entry(2, ["10.0.0.2"], [])],
}
RING = {
    "backend": "ring",
    "envs": ["MLX_METAL_FAST_SYNCH=1"],
    "hosts": [
        entry(1, ["192.168.0.1", "192.168.0.5"], []),
        entry(2, ["192.168.0.2", "192.168.0.6"], []),
    ],
}
JACCL = {
    "backend": "jaccl",
    "envs": [],
    "hosts": [
        entry(1, ["10.0.0.1"], [None, "rdma_en3", "rdma_en4"]),
        entry(2, ["10.0.0.2"], ["rdma_en3", None, "rdma_en5"]),
        entry(3, ["10.0.0.3"], ["rdma_en4", "rdma_en5", None]),
    ],
}
DOUBLE = ["rdma_en3", "rdma_en4"]
JACCL_RING = {
    "backend": "jaccl-ring",
    "envs": [],
    "hosts": [
        entry(1, ["10.0.0.1"], [None, DOUBLE, None, DOUBLE]),
        entry(2, ["10.0.0.2"], [DOUBLE, None, DOUBLE, None]),
        entry(3, ["10.0.0.3"], [None, DOUBLE, None, DOUBLE]),
        entry(4, ["10.0.0.4"], [DOUBLE, None, DOUBLE, None]),
    ],
}


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")  # MLX's
@pytest.mark.parametrize(
    ("data", "backend", "devices"),
    [
        (ETHERNET, None, ()),
        (ETHERNET["hosts"], None, ()),
        ({"hosts": ETHERNET["hosts"]}, None, ()),
        ({**ETHERNET, "backend": "any"}, None, ()),
        ({**ETHERNET, "backend": "mpi"}, "mpi", ()),
        ({**ETHERNET, "backend": "nccl"}, "nccl", ()),
        ({**ETHERNET, "tuned": True}, None, ()),
        (RING, "ring", ()),
        (JACCL, "jaccl", ((), ("rdma_en3",), ("rdma_en4",))),
        (JACCL_RING, "jaccl-ring", ((), tuple(DOUBLE), (), tuple(DOUBLE))),
    ],
)
def test_read_hosts_takes_what_mlx_writes(data, backend, devices, tmp_path):
    (tmp_path / "hosts.json").write_text(json.dumps(data, indent=4))
    read = host_files.read_hosts(tmp_path / "hosts.json")
    (tmp_path / "again.json").write_text(
        json.dumps(Hostfile.from_file(tmp_path / "hosts.json").to_json())
    )
    assert host_files.read_hosts(tmp_path / "again.json") == read
    entries = data["hosts"] if isinstance(data, dict) else data
    assert read.backend == backend
    assert read.hosts[0].devices == devices
    assert [host.addresses for host in read.hosts] == [
        tuple(entry["ips"]) for entry in entries
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ENTRIES, hosts.HostList(HOSTS)),
        (
            {"hosts": ENTRIES, "envs": ["MLX_MAX_A=b=c"], "backend": "any"},
            hosts.HostList(HOSTS, (("MLX_MAX_A", "b=c"),)),
        ),
        (  # an entry for each rank
            [*ENTRIES, ENTRIES[0]],
            hosts.HostList(
                (Host("mac1", 2, ("10.0.0.1",)), HOSTS[1]), repeated=(("mac1", 2),)
            ),
        ),
        (
            [{"ssh": "mac1", "slots": 3}, {"ssh": "mac2"}],
            hosts.HostList((Host("mac1", 3), Host("mac2"))),
        ),
    ],
)
def test_read_hosts_of_mlx_json_returns_hosts_and_variables(data, expected, tmp_path):
    (tmp_path / "hosts.json").write_text(json.dumps(data))
    assert host_files.read_hosts(tmp_path / "hosts.json") == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[", "Expecting"),
        ([], "wanted a list"),
        ({}, "wanted a list"),
        ({"hosts": "mac1"}, "wanted a list"),
        (["mac1"], "wanted {"),
        ([{"ips": []}], "host None"),
        ([{"ssh": ["mac1"]}], "host "),
        ([{"ssh": "mac1", "ips": "10.0.0.1"}], "wanted {"),
        ([{"ssh": "mac1", "ips": ["::1"]}], "entry 1: address '::1': wanted IPv4"),
        ([{"ssh": "mac1", "ips": [1]}], "wanted IPv4"),
        ([{"ssh": "mac1", "ips": ["-x"]}], "wanted IPv4"),
        *(
            ([{"ssh": "mac1", "slots": bad}], "slots")
            for bad in (0, -1, 4097, 1.5, "2", True, None, [2])
        ),
        ([{"ssh": "a"}, {"ssh": "b", "rdma": "rdma_en3"}], "entry 2: host b: found"),
        ([{"ssh": "a", "rdma": [None, 3]}], r"found 3 in rdma, wanted null"),
        ([{"ssh": "a", "rdma": [None, ["b", None]]}], "in rdma, wanted null"),
        ([{"ssh": "a", "rdma": [None, "-x y"]}], "in rdma, wanted null"),
        (
            [{"ssh": "a", "ips": ["10.0.0.1"]}, {"ssh": "A", "ips": ["10.0.0.2"]}],
            r"entry 2: host A has ips \['10.0.0.2'\], and entry 1",
        ),
        (
            [{"ssh": "a", "ips": ["10.0.0.1"]}, {"ssh": "b", "ips": ["10.0.0.1"]}],
            r"hosts a and b both have 10\.0\.0\.1",
        ),
        (
            [{"ssh": "a", "ips": ["127.0.0.1"]}, {"ssh": "b"}],
            r"host a has 127\.0\.0\.1 in ips: wanted an address by which",
        ),
        ([{"ssh": "a", "ips": ["0.0.0.0"]}], r"host a has 0\.0\.0\.0 in ips"),
        ([{"ssh": "a", "ips": ["224.0.0.1"]}], r"host a has 224\.0\.0\.1 in ips"),
        ({"hosts": [{"ssh": "a"}], "backend": "gloo"}, "backend 'gloo', wanted one"),
        ({"hosts": [{"ssh": "a"}], "backend": None}, "backend None, wanted one"),
        ({"hosts": [{"ssh": "a"}], "backend": ["mpi"]}, "wanted one of mpi"),
        ({"hosts": [{"ssh": "a"}], "envs": "A=b"}, "wanted a list"),
        ({"hosts": [{"ssh": "a"}], "envs": ["A"]}, "wanted NAME=VALUE"),
        ({"hosts": [{"ssh": "a"}], "envs": ["A B=c"]}, "environment variable"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_read_hosts_of_invalid_json_raises(tmp_path, data, message):
    path = tmp_path / "hosts.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(ValueError, match=message) as raised:
        host_files.read_hosts(path)
    assert str(raised.value).startswith(str(path))


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
def test_read_hosts_with_a_variable_that_names_code_raises(
    name, main, tmp_path, capsys
):
    path, script = tmp_path / "hosts.json", tmp_path / "x.py"
    (tmp_path / "agent").write_text(f"#!/bin/sh\ntouch {tmp_path}/marker\n")
    (tmp_path / "agent").chmod(0o755)
    script.touch()
    allowed = {
        "MLX_METAL_FAST_SYNCH": "1",
        "OMP_NUM_THREADS": "2",
        "MLX_ENABLE_TF32": "=",
    }
    envs = [f"{key}={value}" for key, value in allowed.items()]
    content = {"hosts": [{"ssh": "localhost"}], "envs": envs}
    hostile = {**content, "envs": [*envs, f"{name}={tmp_path}/agent"]}
    path.write_text(json.dumps(hostile))
    assert main("run", f"--hostfile={path}", script) == 2
    assert f"{path}: environment variable" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()
    path.write_text(json.dumps(content))
    assert host_files.read_hosts(path).variables == tuple(allowed.items())
