"""Mistakes in how `mlxdist run` starts a job, and in signals."""

from tests.mutations.mutation import Mutation

COMMAND = ("tests/launcher/test_mpirun_command.py",)
ENVIRONMENT = ("tests/launcher/test_environment.py",)
GPUS = ("tests/launcher/test_gpus.py",)
HANDLERS = ("tests/launcher/test_signal_handlers.py",)
DATA_PLANE = ("tests/launcher/test_data_plane.py",)
DEVICE_MATRIX = ("tests/launcher/test_device_matrix.py",)
HOSTS = ("tests/launcher/test_hosts.py",)
HOST_FILES = ("tests/launcher/test_host_files.py",)
INTERFACES = ("tests/launcher/test_interfaces.py",)
METAL_ERRORS = ("tests/launcher/test_metal_errors.py",)
LAUNCHES = ("tests/launcher/test_launches.py",)
NETWORK = ("tests/launcher/test_network.py",)
RUNNER = ("tests/launcher/test_runner.py",)
STOPPED = (
    "tests/launcher/test_signals.py::test_run_that_is_stopped_stops_its_ranks_until_it_continues",
)

MUTATIONS = [
    # Signals
    Mutation(
        "launcher/signals.py",
        "if former is not signal.SIG_IGN:",
        "if former:",
        HANDLERS,
    ),
    Mutation(
        "launcher/signals.py",
        "signal.SIGTERM, signal.SIGHUP,",
        "signal.SIGTERM,",
        HANDLERS,
    ),
    Mutation("launcher/signals.py", "self.repeated = True", "pass", HANDLERS),
    Mutation(
        "launcher/signals.py",
        "self.suspended += time.monotonic() - began",
        "pass",
        HANDLERS,
    ),
    Mutation("launcher/signals.py", "in self._former.items():", "in ():", HANDLERS),
    Mutation("launcher/signals.py", "    signal.SIGUSR1,", "", HANDLERS),
    Mutation(
        "launcher/signals.py", "os.kill(os.getpid(), signal.SIGSTOP)", "pass", STOPPED
    ),
    # mpirun
    Mutation("launcher/mpirun.py", " - self._signals.suspended", "", HANDLERS),
    Mutation("launcher/mpirun.py", "is signal.SIG_IGN", "is signal.SIG_DFL", HANDLERS),
    Mutation(
        "launcher/mpirun.py", "self._active_seconds() > self.timeout", "False", HANDLERS
    ),
    Mutation(
        "launcher/mpirun_command.py",
        "session_dir] if session_dir and not is_set",
        "session_dir] if is_set",
        RUNNER,
    ),
    Mutation(
        "launcher/mpirun_command.py",
        "job.ranks > usable_cores",
        "job.ranks > usable_cores + 1",
        COMMAND,
    ),
    Mutation(
        "launcher/mpirun_command.py",
        '"--map-by", "slot"',
        '"--map-by", "node"',
        COMMAND,
    ),
    Mutation("launcher/mpirun_command.py", 'options += ["-x", name]', "pass", COMMAND),
    Mutation(
        "launcher/mpirun_command.py", "result.update(job.variables)", "pass", COMMAND
    ),
    # Hosts and networks
    Mutation("launcher/hosts.py", "range(host.slots)", "range(1)", HOSTS),
    Mutation(
        "launcher/hosts.py",
        "if ranks > len(names):",
        "if ranks > len(names) + 1:",
        HOSTS,
    ),
    Mutation("launcher/hosts.py", "first.slots + host.slots", "host.slots", HOSTS),
    Mutation("launcher/hosts.py", "host.name.lower()", "host.name", HOSTS),
    Mutation("launcher/hosts.py", "not 1 <= int(text)", "not 0 <= int(text)", HOSTS),
    Mutation(
        "launcher/host_files.py",
        "if not _ALLOWED_IN_FILES.fullmatch(name):",
        "if not name:",
        HOST_FILES,
    ),
    Mutation(
        "launcher/host_files.py",
        "if host.addresses != other.addresses:",
        "if not host.addresses:",
        HOST_FILES,
    ),
    # GPUs
    Mutation("launcher/gpus.py", "of_rank[local_rank]", "of_rank[0]", GPUS),
    Mutation("launcher/gpus.py", "if len(names) > 1 else None", "", GPUS),
    Mutation("launcher/rank_main.py", "        _take_gpu()", "        pass", GPUS),
    # Errors of Metal
    Mutation("launcher/metal_errors.py", "known[0]", "known[-1]", METAL_ERRORS),
    Mutation(
        "launcher/failure.py",
        'if rank.signal == "SIGABRT":',
        'if rank.signal == "SIGKILL":',
        METAL_ERRORS,
    ),
    Mutation(
        "launcher/mpirun_log.py",
        "if _METAL_ERROR in data:",
        "if not data:",
        METAL_ERRORS,
    ),
    # The data plane
    Mutation(
        "launcher/data_plane.py",
        'name = "jaccl" if backend == RING_OF_JACCL else backend',
        "name = backend",
        DATA_PLANE,
    ),
    Mutation(
        "launcher/data_plane.py",
        "host.devices[: len(used)]",
        "host.devices",
        DATA_PLANE,
    ),
    Mutation("launcher/data_plane.py", "names.count(name) > 1", "not name", DATA_PLANE),
    Mutation(
        "launcher/device_matrix.py",
        "if len(there) != len(back):",
        "if there and not back:",
        DEVICE_MATRIX,
    ),
    Mutation(
        "launcher/device_matrix.py", "ring or not _is_mesh(rows)", "ring", DEVICE_MATRIX
    ),
    Mutation(
        "launcher/interfaces.py",
        '"UP" not in device.get("flags", ()) or ',
        "",
        INTERFACES,
    ),
    Mutation(
        "launcher/interfaces.py",
        "key=lambda interface: KINDS.index(interface.kind)",
        "key=str",
        INTERFACES,
    ),
    Mutation("launcher/network.py", "if all(", "if any(", NETWORK),
    Mutation("launcher/network.py", 'matches[0].kind == "loopback"', "False", NETWORK),
    # The environment
    Mutation("launcher/cores.py", "max(1, cores // ranks)", "cores // ranks", COMMAND),
    Mutation(
        "launcher/cores.py",
        "for name in THREAD_VARIABLES if name not in environment",
        "for name in THREAD_VARIABLES",
        COMMAND,
    ),
    Mutation(
        "launcher/environment.py",
        "os.environ.setdefault(MPI_PARAMETER + name, value)",
        "os.environ[MPI_PARAMETER + name] = value",
        ENVIRONMENT,
    ),
    Mutation(
        "launcher/environment.py",
        "and name not in (*LAUNCHER_VARIABLES, BACKEND)",
        "",
        ENVIRONMENT,
    ),
    Mutation(
        "launcher/environment.py",
        "start + _LONGEST_VALUE]",
        "start + _LONGEST_VALUE - 1]",
        ENVIRONMENT,
    ),
    Mutation(
        "launcher/launches.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        LAUNCHES,
    ),
    Mutation(
        "launcher/launches.py", "(names.strict and not all(job))", "False", LAUNCHES
    ),
    Mutation("launcher/launches.py", 'launch.job in (job, "")', "True", LAUNCHES),
]
