"""Mistakes in the checks of `mlxdist doctor`."""

from tests.mutations.mutation import Mutation

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
]
