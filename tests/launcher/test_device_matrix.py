"""Which matrices of RDMA devices jaccl can use."""

import pytest

from mlxdist.launcher import device_matrix

NAMES = ("a", "b", "c", "d")


def matrix(*rows):
    """Return a matrix from a string for each row: how many devices lead to each."""
    return [
        tuple(tuple(f"rdma_en{i}" for i in range(int(n))) for n in row) for row in rows
    ]


@pytest.mark.parametrize(
    ("rows", "ring"),
    [
        (matrix("0"), True),
        (matrix("01", "10"), False),
        (matrix("02", "20"), True),
        (matrix("012", "101", "210"), False),  # a mesh, with a second cable
        (matrix("0101", "1010", "0101", "1010"), False),
        (matrix("0202", "2020", "0202", "2020"), True),
    ],
)
def test_problems_of_a_mesh_or_a_ring_are_none(rows, ring):
    assert not list(device_matrix.problems(NAMES[: len(rows)], rows, ring=ring))


@pytest.mark.parametrize(
    ("rows", "ring", "expected"),
    [
        (matrix("01", ""), False, ["host b has no rdma, wanted a list of 2"]),
        (matrix("01", "100"), False, ["host b has 3 items in rdma, wanted 2"]),
        (matrix("11", "10"), False, ["host a has rdma_en0 in rdma for itself"]),
        (
            matrix("02", "10"),
            False,
            ["host a has rdma_en0, rdma_en1 in rdma for b, which has rdma_en0 for a"],
        ),
        (matrix("00", "10"), False, ["host a has null in rdma for b, which has"]),
        (matrix("00", "00"), False, 2 * ["wanted a device for each pair of hosts"]),
        (  # a chain of three
            matrix("010", "101", "010"),
            False,
            ["host c has null in rdma for a, the next host; wanted a device for each"],
        ),
        (
            matrix("012", "101", "210"),
            True,
            ["host c has rdma_en0, rdma_en1 in rdma for a, the next host; wanted a"],
        ),
    ],
)
def test_problems_name_the_host_and_what_was_wanted(rows, ring, expected):
    found = list(device_matrix.problems(NAMES[: len(rows)], rows, ring=ring))
    assert len(found) == len(expected)
    for problem, text in zip(found, expected, strict=True):
        assert text in problem
