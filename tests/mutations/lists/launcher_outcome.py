"""Mistakes in what `mlxdist run` makes of a job's end, its output and its files."""

from tests.mutations.mutation import Mutation

TRACEBACKS = (
    "tests/launcher/test_failure.py::test_tracebacks_begin_with_the_rank_that_failed_first",
)
PRIVATE = ("tests/launcher/test_private_files.py",)
FRAMES = ("tests/launcher/test_user_frames.py",)
MARKS = ("tests/launcher/test_marks.py",)
MARK_FILTER = ("tests/launcher/test_mark_filter.py",)
CALL = ("tests/launcher/test_failure.py::test_call_of_a_rank_as_in_mlx_is_explained",)
OUTCOME = ("tests/launcher/test_outcome.py",)
OUTPUT = ("tests/launcher/test_output.py",)
RANK_FAILURE = ("tests/launcher/test_rank_failure.py",)
RANK_MAIN = ("tests/launcher/test_rank_main.py",)
RUN = (
    "tests/launcher/test_run.py"
    "::test_run_with_a_rank_that_dies_in_an_exit_handler_names_it",
)
RUNNER = ("tests/launcher/test_runner.py",)
SUMMARY = ("tests/launcher/test_summary.py",)
SHOWN = (
    "tests/launcher/test_failure.py"
    "::test_shown_has_each_different_text_once_and_at_most_three",
)

MUTATIONS = [
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
    Mutation("launcher/summary.py", "if code and lost_hosts", "if lost_hosts", SUMMARY),
    Mutation("launcher/summary.py", "if host not in reported]", "]", SUMMARY),
    Mutation("launcher/summary.py", '"failed" or rank.signal', '"failed"', SUMMARY),
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
    Mutation("launcher/output.py", "append=append, mode", "append=True, mode", RUNNER),
    Mutation("launcher/output.py", "self.log.read(rank, text)", "pass", OUTCOME),
    Mutation("launcher/tagged_stream.py", '1 if name == b"out" else 2', "1", OUTPUT),
    Mutation(
        "launcher/failure.py",
        "sorted(present, key=time_of)",
        "sorted(present)",
        TRACEBACKS,
    ),
    Mutation(
        "launcher/failure.py",
        "first.setdefault(text, rank)",
        "first[text] = rank",
        SHOWN,
    ),
    Mutation("launcher/failure.py", "[:_MOST_SHOWN]", "", SHOWN),
    Mutation("launcher/failure.py", "if not calls or last !=", "if last !=", CALL),
    Mutation("launcher/failure.py", "not calls or last !=", "not calls or not", CALL),
    Mutation("launcher/user_frames.py", "list(frames)[::-1]", "list(frames)", FRAMES),
    # Files that other users can't plant or read
    Mutation(
        "launcher/private_files.py", "os.O_CREAT | os.O_EXCL |", "os.O_CREAT |", PRIVATE
    ),
    Mutation(
        "launcher/private_files.py",
        "os.mkdir(folder, 0o700)",
        "os.mkdir(folder)",
        PRIVATE,
    ),
    Mutation(
        "launcher/private_files.py",
        "*, mode: int = 0o600",
        "*, mode: int = 0o666",
        PRIVATE,
    ),
    Mutation("launcher/private_files.py", "not in trusted:", "< 0:", PRIVATE),
    Mutation(
        "launcher/private_files.py",
        "if info.st_uid != os.geteuid():",
        "if info.st_uid < 0:",
        PRIVATE,
    ),
    Mutation(
        "launcher/private_files.py",
        "if info.st_mode & stat.S_IWOTH:",
        "if info.st_mode & stat.S_IROTH:",
        PRIVATE,
    ),
    Mutation("launcher/private_files.py", " and info.st_nlink == 1", "", PRIVATE),
]
