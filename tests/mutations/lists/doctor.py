"""Mistakes in the checks of `mlxdist doctor`."""

from tests.mutations.mutation import Mutation, mistakes

MAC = ("tests/doctor/test_mac_checks.py",)
GPU = ("tests/doctor/test_gpu_checks.py",)

MUTATIONS = [
    Mutation(
        "doctor/mac_checks.py",
        '"0" or _KEEPS_AWAKE in sleep.prevented_by',
        '"0" or sleep.prevented_by',
        MAC,
    ),
    Mutation("doctor/mac_checks.py", "macos < _MACOS_FOR_RDMA", "not macos", MAC),
    Mutation("doctor/mac_checks.py", "if name not in devices", "if not name", MAC),
    Mutation("doctor/mac_checks.py", "elif not devices:", "elif not status:", MAC),
    Mutation("doctor/mac_checks.py", "if limit >= 100:", "if limit:", MAC),
    Mutation(
        "doctor/mac_output.py",
        'if match is None or "UP" not in match[1].split(","):',
        "if match is None:",
        MAC,
    ),
    Mutation("doctor/finding.py", "in data_plane.JACCL", "== 'jaccl'", MAC),
    Mutation("doctor/gpu_checks.py", "context.slots > usable", "False", GPU),
    Mutation("doctor/gpu_checks.py", "if usable == 0:", "if usable < 0:", GPU),
    Mutation(
        "doctor/host_file_checks.py",
        '"failure" if uses_jaccl else "warning"',
        '"failure"',
        MAC,
    ),
    *mistakes(
        "doctor/link_job.py",
        ("tests/doctor/test_link_job.py",),
        [
            (
                "seats = [seats[0], seats[-1], *seats[1:-1]]",
                "seats = seats[1:] + seats[:1]",
            ),
            ("*([None] * (size % 2))", ""),
            ("for _ in range(len(seats) - 1):", "for _ in range(len(seats) - 2):"),
        ],
        ranks=(),
    ),
    *mistakes(
        "doctor/group_checks.py",
        ("tests/doctor/test_group_checks.py", "tests/doctor/test_diagnosis.py"),
        [
            ("        if count > 1:", "        if count > 2:"),
            ('not in ("loopback", "virtual")', 'not in ("loopback",)'),
            ("for some in others)", "for some in others[:1])"),
            (
                "if not any(interface.is_in(name) for",
                "if not all(interface.is_in(name) for",
            ),
        ],
        ranks=(),
    ),
    *mistakes(
        "doctor/host_checks.py",
        ("tests/doctor/test_diagnosis.py",),
        [
            ('    if report["python"] == version:', "    if True:"),
            (
                "if version is not None and version == expected:",
                "if version is not None:",
            ),
            ('elif _prefix(mpi["libmpi"]) != _prefix(mpi["mpirun"]):', "elif False:"),
            ('    if mpi["version"] != expected["version"]:', "    if False:"),
            ("    if len(tmpdir) <= longest:", "    if True:"),
            ("    if free < scarce:", "    if free > scarce:"),
            ('if not peer["resolved"]:', 'if peer["resolved"]:'),
        ],
        ranks=(),
    ),
    *mistakes(
        "doctor/selftest.py",
        ("tests/doctor/test_selftest.py",),
        [
            ("difference <= _TOLERANCE and report", "report"),
            (
                "result.code != 0 and killed in result.killed and",
                "result.code != 0 and",
            ),
            ("passed = result.code == 0 and difference", "passed = difference"),
        ],
        ranks=(),
    ),
]
