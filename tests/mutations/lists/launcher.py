"""Mistakes in starting, ending and reporting a job of `mlxdist run`."""

from tests.mutations.mutation import Mutation

COMMAND = ("tests/launcher/test_mpirun_command.py",)
ENVIRONMENT = ("tests/launcher/test_environment.py",)
FAILURE = ("tests/launcher/test_failure.py",)
FRAMES = ("tests/launcher/test_user_frames.py",)
HANDLERS = ("tests/launcher/test_signal_handlers.py",)
HOSTS = ("tests/launcher/test_hosts.py",)
HOST_FILES = ("tests/launcher/test_host_files.py",)
INTERFACES = ("tests/launcher/test_interfaces.py",)
LAUNCHES = ("tests/launcher/test_launches.py",)
MARKS = ("tests/launcher/test_marks.py",)
MARK_FILTER = ("tests/launcher/test_mark_filter.py",)
MPIRUN = ("tests/launcher/test_mpirun.py",)
NETWORK = ("tests/launcher/test_network.py",)
OUTCOME = ("tests/launcher/test_outcome.py",)
OUTPUT = ("tests/launcher/test_output.py",)
RANK_FAILURE = ("tests/launcher/test_rank_failure.py",)
RANK_MAIN = ("tests/launcher/test_rank_main.py",)
RESTARTS = ("tests/launcher/test_restarts.py",)
RUN = ("tests/launcher/test_run.py",)
RUNNER = ("tests/launcher/test_runner.py",)
STOPPED = (
    "tests/launcher/test_signals.py::test_run_that_is_stopped_stops_its_ranks_until_it_continues",
)
SUMMARY = ("tests/launcher/test_summary.py",)

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
        "launcher/hosts.py",
        "if not _ALLOWED_IN_FILES.fullmatch(name):",
        "if not name:",
        HOST_FILES,
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
        'os.environ.setdefault(f"OMPI_MCA_{name}", value)',
        'os.environ[f"OMPI_MCA_{name}"] = value',
        ENVIRONMENT,
    ),
    Mutation(
        "launcher/environment.py",
        " and name not in LAUNCHER_VARIABLES",
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
    # Marks, and what they say of the ranks
    Mutation(
        "launcher/marks.py", "fcntl.lockf(descriptor, fcntl.LOCK_EX)", "pass", MARKS
    ),
    Mutation("launcher/marks.py", "flags, 0o600)", "flags, 0o644)", MARKS),
    Mutation(
        "launcher/marks.py",
        'text.partition("\\n")[0] if mark == "failed" else',
        "",
        MARKS,
    ),
    Mutation(
        "launcher/mark_filter.py",
        "if chunk.rank == self._rank:",
        "if chunk.rank >= 0:",
        MARK_FILTER,
    ),
    Mutation(
        "launcher/mark_filter.py",
        "if not path.exists():",
        "if path:",
        MARK_FILTER,
        equivalent="A mark's parts keep their first text: the same is written again.",
    ),
    Mutation(
        "launcher/mark_filter.py",
        "chunks.setdefault(chunk.part, chunk.text)",
        "chunks[chunk.part] = chunk.text",
        MARK_FILTER,
    ),
    Mutation("launcher/outcome.py", "killed = {} if stopped else", "killed =", OUTCOME),
    Mutation(
        "launcher/outcome.py",
        "hosts[rank] in lost_hosts",
        "hosts[rank] not in lost_hosts",
        OUTCOME,
    ),
    Mutation("launcher/outcome.py", "log.peer_hosts[0]", "log.peer_hosts[-1]", OUTCOME),
    Mutation(
        "launcher/outcome.py", "ended |= set(silent) - set(killed)", "pass", OUTCOME
    ),
    Mutation(
        "launcher/mpirun_log.py",
        "len(self._ended_first) != 1",
        "not self._ended_first",
        OUTCOME,
    ),
    Mutation(
        "launcher/summary.py",
        "(128 - code if code < 0 else code) or 1",
        "(128 - code if code < 0 else code)",
        SUMMARY,
    ),
    Mutation(
        "launcher/summary.py", "128 - code if code < 0", "-code if code < 0", SUMMARY
    ),
    Mutation(
        "launcher/summary.py", "exit_code=128 + received", "exit_code=received", SUMMARY
    ),
    Mutation("launcher/summary.py", "exit_code=TIMED_OUT", "exit_code=code", SUMMARY),
    Mutation("launcher/summary.py", "runs[-1][-1] + 1", "runs[-1][-1]", SUMMARY),
    # Ranks
    Mutation(
        "launcher/rank_failure.py",
        "leaving.code & 0xFF or 1",
        "leaving.code & 0xFF",
        RANK_FAILURE,
    ),
    Mutation(
        "launcher/rank_failure.py",
        "if code != USAGE_ERROR:",
        "if code == USAGE_ERROR:",
        RANK_FAILURE,
    ),
    Mutation(
        "launcher/rank_failure.py",
        "report.__notes__ = None",
        "pass",
        RANK_FAILURE,
    ),
    Mutation(
        "launcher/rank_main.py",
        "130 if isinstance(error, KeyboardInterrupt) else 1",
        "1",
        RANK_MAIN,
    ),
    Mutation(
        "launcher/rank_main.py",
        "if finished and os.getpid() == pid:",
        "if finished:",
        RUN,
    ),
    Mutation("launcher/rank_main.py", "finished.append(True)", "pass", RANK_MAIN),
    # Starts and restarts
    Mutation(
        "launcher/runner.py", "final or outcome.stopped_by is not None", "final", RUNNER
    ),
    Mutation(
        "launcher/runner.py",
        "restarts == max_restarts",
        "restarts > max_restarts",
        RUNNER,
    ),
    Mutation("launcher/runner.py", "(0, USAGE_ERROR)", "(0,)", RUNNER),
    Mutation(
        "launcher/runner.py",
        "environment.set_restarts(restarts)",
        "environment.set_restarts(0)",
        RUNNER,
    ),
    Mutation("launcher/runner.py", "append=append_logs", "append=False", RUNNER),
    Mutation("launcher/runner.py", "end_ranks(run_dir)", "pass", RUNNER),
    # Output and reports of failures
    Mutation("launcher/output.py", '"ab+" if append else "wb"', '"ab+"', OUTPUT),
    Mutation("launcher/output.py", "self.log.read(rank, text)", "pass", OUTCOME),
    Mutation("launcher/tagged_stream.py", '1 if name == b"out" else 2', "1", OUTPUT),
    Mutation(
        "launcher/failure.py",
        "sorted(present, key=time_of)",
        "sorted(present)",
        FAILURE,
    ),
    Mutation(
        "launcher/failure.py",
        "first.setdefault(text, rank)",
        "first[text] = rank",
        FAILURE,
    ),
    Mutation("launcher/failure.py", "[:_MOST_SHOWN]", "", FAILURE),
    Mutation("launcher/user_frames.py", "list(frames)[::-1]", "list(frames)", FRAMES),
]
