"""Mistakes in joining, in collectives of a world, and in what a failed job leaves."""

from tests.mutations.mutation import Mutation

CLOCKS = ("tests/world/test_clocks.py",)
CLOSE = ("tests/world/test_close.py",)
FINALIZE = ("tests/world/test_finalize.py",)
HEARTBEAT = ("tests/world/test_heartbeat.py",)
HOOKS = ("tests/world/test_hooks.py",)
JOIN = ("tests/world/test_join.py",)
METRICS = ("tests/world/test_metrics.py",)
POSTMORTEM = ("tests/world/test_postmortem.py",)
PROCESS = ("tests/world/test_process.py",)
WORLD = ("tests/world/test_world.py",)
CHILDREN = ("tests/world/test_identity.py::test_children_of_a_rank_get_a_world_of_one",)
EVENTS = (
    "tests/world/test_timeline.py::test_events_are_times_of_rank_0_since_the_start",
)
CLAIMED = (
    "tests/world/test_identity.py"
    "::test_process_whose_rank_is_claimed_joins_only_as_its_child",
)

MUTATIONS = [
    # The world's collectives
    Mutation(
        "world/broadcast.py",
        "_, problem = result_or_problem(mx.eval, arrays)",
        "pass",
        WORLD,
        (2,),
    ),
    Mutation("world/world.py", "[seed, self.rank]", "[seed]", WORLD, (3,)),
    Mutation(
        "world/world.py",
        "seed if self.is_root else int(mixed[0])",
        "int(mixed[0])",
        WORLD,
        (2,),
    ),
    Mutation("world/world.py", '{"flush": True, **options}', "options", WORLD, (1,)),
    Mutation("world/world.py", "tree.update(result)", "pass", WORLD, (2,)),
    Mutation(
        "world/world.py",
        "(every == every[0]).all()",
        "(every == every[0]).any()",
        WORLD,
        (2,),
    ),
    Mutation(
        "world/world.py", "self.at_close.callback(part.close)", "pass", CLOSE, (2,)
    ),
    Mutation(
        "world/world.py", 'agree(self.control, "World.close")', "pass", CLOSE, (2,)
    ),
    Mutation(
        "world/world.py", "if not any(weights):", "if not all(weights):", METRICS, (2,)
    ),
    Mutation(
        "world/world.py",
        "sharded or host.overlaps",
        "sharded and host.overlaps",
        WORLD,
        (2,),
    ),
    Mutation(
        "world/world.py", " and os.getpid() != self._process", " and False", CHILDREN
    ),
    Mutation("world/broadcast.py", '[f"root {root}", *texts]', "texts", WORLD, (2,)),
    Mutation(
        "world/broadcast.py",
        "0 <= root < comm.size",
        "0 <= root <= comm.size",
        WORLD,
        (2,),
    ),
    Mutation(
        "world/broadcast.py", "(text.encode())[root]", "(text.encode())[0]", WORLD, (2,)
    ),
    Mutation("world/broadcast.py", "str(e) if is_module else", "", WORLD, (2,)),
    Mutation(
        "world/metrics.py",
        "            if weight:",
        "            if weight >= 0:",
        METRICS,
        (2,),
    ),
    Mutation("world/metrics.py", "math.fsum(weights)", "len(weights)", METRICS, (2,)),
    Mutation(
        "world/metrics.py",
        "value.size * value.itemsize // vector.itemsize",
        "value.size",
        METRICS,
        (2,),
    ),
    Mutation(
        "world/metrics.py",
        "leaf.astype(mx.float32) if leaf.dtype == mx.bfloat16 else leaf",
        "leaf.astype(mx.float32)",
        METRICS,
        (1,),
    ),
    # Joining
    Mutation(
        "world/process.py", "MPI.ERRORS_ARE_FATAL", "MPI.ERRORS_RETURN", JOIN, (2,)
    ),
    Mutation(
        "world/process.py",
        "ranks_on_host < ranks or",
        "False or",
        ("tests/world/test_process.py",),
    ),
    Mutation("world/process.py", "every.any()", "every.all()", WORLD, (2,)),
    Mutation("world/process.py", '"btl": "^ofi",', "", PROCESS),
    Mutation(
        "world/join.py",
        "guard={guard}, ",
        "",
        (
            "tests/world/test_join.py::test_init_where_one_rank_communicates_otherwise_raises_on_all",
        ),
    ),
    Mutation(
        "world/join.py",
        "if 0 <= age <= _LONGEST_RUN:",
        "if age >= 0:",
        (
            "tests/world/test_join.py::test_init_seeds_ranks_differently_unless_they_are_seeded",
        ),
    ),
    Mutation("world/join.py", "environment.hide_mpirun()", "pass", CHILDREN),
    Mutation(
        "world/join.py",
        "0 < timeout <",
        "0 <= timeout <",
        ("tests/world/test_join.py::test_init_with_an_invalid_timeout_raises",),
    ),
    Mutation(
        "world/join.py",
        "value not in (_options[name], _DEFAULTS[name])",
        "value != _DEFAULTS[name]",
        CLOSE,
    ),
    Mutation(
        "world/identity.py",
        "launch.size != size",
        "launch.size < size",
        (
            "tests/world/test_join.py::test_init_under_a_launcher_that_mpi_does_not_know_raises",
        ),
    ),
    Mutation("world/identity.py", "claimed == os.getppid() or ", "", CLAIMED),
    # Hooks and the end of the process
    Mutation(
        "world/hooks.py", "is not sys.__excepthook__", "is sys.__excepthook__", HOOKS
    ),
    Mutation("world/hooks.py", "chain=True", "chain=False", HOOKS),
    Mutation("world/hooks.py", "file=wake_fd, ", "", HOOKS),
    Mutation(
        "world/hooks.py",
        "signal.SIG_DFL if self.is_current else signal.getsignal(signal.SIGTERM)",
        "signal.SIG_DFL",
        HOOKS,
    ),
    Mutation(
        "world/process.py",
        'if not mx.distributed.is_available("mpi"):',
        "if 0:",
        FINALIZE,
    ),
    Mutation(
        "world/finalize.py",
        "os.register_at_fork(after_in_child=_skip_inherited_handlers)",
        "pass",
        FINALIZE,
    ),
    Mutation("world/finalize.py", "_at_c_exit(finalize)", "pass", FINALIZE),
    Mutation(
        "world/guard.py",
        "code=code or (130",
        "code=(130",
        (
            "tests/launcher/test_run.py::test_run_with_a_rank_that_leaves_its_world_ends_the_others",
        ),
    ),
    Mutation(
        "world/guard.py",
        "130 if isinstance",
        "1 if isinstance",
        (
            "tests/world/test_guard.py::test_guard_failure_of_the_last_rank_ends_the_job[interrupt-forward-2]",
        ),
    ),
    Mutation(
        "world/guard.py",
        "time.monotonic(), True",
        "time.monotonic(), False",
        (
            "tests/world/test_watchdog.py::test_watchdog_early_exit_of_a_rank_ends_the_job",
        ),
    ),
    # Timelines and records
    Mutation(
        "world/trace_events.py",
        "on_rank_0(local) - self.origin",
        "on_rank_0(local) + self.origin",
        EVENTS,
    ),
    Mutation("world/clocks.py", "local - first.ahead -", "local -", CLOCKS),
    Mutation("world/clocks.py", "part * (last.ahead", "part / (last.ahead", CLOCKS),
    Mutation("world/clocks.py", "(sent + received) / 2", "sent", CLOCKS, (2,)),
    Mutation(
        "world/clocks.py", "offsets[readers[rank]]", "offsets[rank]", CLOCKS, (3,)
    ),
    Mutation(
        "world/timeline.py",
        "_lock(folder)",
        "pass",
        (
            "tests/world/test_timeline.py::test_add_events_of_several_processes_makes_one_trace",
        ),
    ),
    Mutation(
        "world/timeline.py",
        "after_in_child=self._sigterm.remove",
        "after_in_child=list",
        (
            "tests/world/test_timeline.py::test_timeline_of_one_rank_is_written_at_its_end",
        ),
    ),
    Mutation(
        "world/timeline.py",
        "if self._sigterm.is_current:",
        "if False:",
        (
            "tests/world/test_timeline.py::test_timeline_of_a_job_that_is_ended_has_its_ranks",
        ),
    ),
    Mutation("world/postmortem.py", "min(failed, key=", "max(failed, key=", POSTMORTEM),
    Mutation("world/postmortem.py", "reverse=True", "reverse=False", POSTMORTEM),
    Mutation(
        "world/postmortem.py",
        "max(path.stat().st_mtime",
        "min(path.stat().st_mtime",
        POSTMORTEM,
    ),
    Mutation(
        "world/postmortem.py",
        "max(min(records, default=0)",
        "min(min(records, default=0)",
        POSTMORTEM,
    ),
    # Heartbeats
    Mutation(
        "world/heartbeat.py",
        "self.heartbeat.idle + self.age",
        "self.heartbeat.idle",
        HEARTBEAT,
    ),
    Mutation(
        "world/watchdog.py",
        "is_busy = status.call or status.waiting or status.leaving",
        "is_busy = status.call or status.waiting",
        (
            "tests/world/test_watchdog.py"
            "::test_watchdog_rank_that_waits_for_one_that_finished_ends_the_job",
        ),
    ),
    Mutation(
        "world/watchdog.py",
        "os.getppid() != self._parent",
        "False",
        (
            "tests/world/test_watchdog.py::test_watchdog_orphans_exit_when_mpirun_is_killed",
        ),
    ),
    Mutation(
        "world/watchdog.py",
        "self._events.on_sigterm()",
        "pass",
        (
            "tests/world/test_postmortem.py::test_report_names_a_killed_rank_by_the_records_of_the_others",
        ),
    ),
]
