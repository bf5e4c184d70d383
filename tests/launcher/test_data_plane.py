"""What reaches a rank of the data plane."""

import pytest

from mlxdist.launcher import data_plane, environment
from mlxdist.launcher.data_plane import DataPlane

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
