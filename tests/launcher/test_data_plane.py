"""What reaches a rank of the data plane."""

import pytest

from mlxdist.launcher import data_plane, environment
from mlxdist.launcher.data_plane import DataPlane
from mlxdist.launcher.hosts import Host

DEVICES = (((), ("rdma_en3", "rdma_en4")), (("rdma_en5", "rdma_en6"), ()))


@pytest.mark.parametrize(
    "plane",
    [
        DataPlane(),
        DataPlane("ring"),
        DataPlane("ring", addresses=(("10.0.0.1", "10.1.0.1"), ("10.0.0.2",))),
        DataPlane("jaccl", addresses=(("10.0.0.1",), ("10.0.0.2",)), devices=DEVICES),
        DataPlane(addresses=(("10.0.0.1",),)),
    ],
)
def test_data_plane_after_variables_of_is_the_same(plane):
    assert data_plane.data_plane_of(data_plane.variables_of(plane)) == plane


def test_data_plane_of_an_unknown_backend_raises():
    with pytest.raises(ValueError, match="MLXDIST_BACKEND is 'gloo'; wanted one of"):
        data_plane.data_plane_of({environment.BACKEND: "gloo"})


# The launcher's side

MAC1 = Host("mac1", 1, ("10.0.0.1",), DEVICES[0])
MAC2 = Host("mac2", 1, ("10.0.0.2",), DEVICES[1])


def test_plan_gives_each_rank_the_addresses_of_its_host():
    hosts = (Host("mac1", 2, ("10.0.0.1",)), Host("mac2", 2, ()))
    plane = data_plane.plan(hosts, 3, "ring")
    assert plane == DataPlane("ring", (("10.0.0.1",), ("10.0.0.1",), ()))


def test_plan_of_jaccl_has_the_devices_of_all_ranks():
    for backend in ("jaccl", "jaccl-ring"):
        plane = data_plane.plan((MAC1, MAC2), 2, backend)
        assert plane == DataPlane("jaccl", (("10.0.0.1",), ("10.0.0.2",)), DEVICES)


def test_plan_of_fewer_ranks_than_hosts_has_the_devices_between_these():
    third = Host("mac3", 1, (), ((), (), ()))
    hosts = [Host(m.name, 1, (), (*m.devices, ())) for m in (MAC1, MAC2)]
    assert data_plane.plan((*hosts, third), 2, "jaccl").devices == DEVICES


def test_plan_without_hosts_names_the_backend_alone():
    assert data_plane.plan((), 2, "ring") == DataPlane("ring")
    assert data_plane.plan((), 2, None) == DataPlane()


@pytest.mark.parametrize(
    ("hosts", "ranks", "message"),
    [
        ((), 2, "jaccl needs the RDMA devices between the hosts: give --hostfile"),
        ((Host("mac1"), Host("mac2")), 2, "jaccl needs the RDMA devices"),
        ((Host("mac1", 2, (), DEVICES[0]), MAC2), 3, "mac1 has 2; name each host once"),
        ((MAC1, Host("mac2")), 2, "jaccl: host mac2 has no rdma, wanted a list of 2"),
    ],
)
def test_plan_of_jaccl_without_a_matrix_raises(hosts, ranks, message):
    with pytest.raises(ValueError, match=message):
        data_plane.plan(hosts, ranks, "jaccl")
