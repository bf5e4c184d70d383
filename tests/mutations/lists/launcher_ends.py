"""Mistakes in ending a rank that waits for ever, in what is printed, and in checks."""

from tests.mutations.mutation import mistakes

DEADLINE = ("tests/launcher/test_join_deadline.py",)
STREAMS = (
    "tests/launcher/test_paused_reader.py",
    "tests/launcher/test_standard_streams.py",
)
TEXT = ("tests/launcher/test_visible_text.py",)
FAILURE = tuple(
    f"tests/launcher/test_failure.py::test_message_filter_{name}"
    for name in (
        "takes_out_what_follows_from_a_failure",
        "of_parts_of_lines_keeps_the_text_of_the_job",
        "of_mpirun_takes_out_what_it_says_of_any_rank",
    )
)
MEMORY = ("tests/launcher/test_out_of_memory.py",)
PREFLIGHT = ("tests/launcher/test_preflight.py",)
KERNELS = ("tests/launcher/test_kernel_folder.py",)

MUTATIONS = [
    *mistakes(
        "launcher/join_deadline.py",
        DEADLINE,
        [
            ('os.kill(options["parent"], signal.SIGKILL)', "pass"),
            ("        seconds -= tick\n", "        seconds -= 0\n"),
            ('    if os.getppid() != options["parent"]:', "    if False:"),
            ("if not select.select([], [2], [], _PRINT_TIMEOUT)[1]:", "if False:"),
            ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "pass"),
            ("if state is None]", "if state == 'T']"),
            (
                "contextlib.suppress(OSError, ValueError,",
                "contextlib.suppress(OSError,",
            ),
        ],
        ranks=(),
    ),
    *mistakes(
        "launcher/out_of_memory.py",
        MEMORY,
        [
            (
                "if not (self._is_local and was_killed and killed > 0):",
                "if not killed:",
            ),
            ("return min((limit", "return max((limit"),
            ("[group, *group.parents] if", "[group] if"),
            ("- self._before", "- 0"),
        ],
        ranks=(),
    ),
    *mistakes(
        "launcher/preflight.py",
        PREFLIGHT,
        [
            ("    _check_ssh(job)", "    pass"),
            ("if is_other or os.path", "if os.path"),
            ("    if not os.path.isdir(job.folder):", "    if False:"),
            ("    if path.is_dir() and not", "    if False and not"),
            ("if python is None or not (remote or runs):", "if python is None:"),
        ],
        ranks=(),
    ),
    *mistakes(
        "launcher/message_filter.py",
        FAILURE,
        [
            (
                "            self.dropped += self._release()",
                "            self._release()",
            ),
            (
                "        return self._release() + self._pending",
                "        return self._pending",
            ),
            ("            self._pending = rest\n", "            pass\n"),
            ("if rank is None else (abort,)", "if True else (abort,)"),
        ],
        ranks=(),
    ),
    *mistakes(
        "launcher/kernel_folder.py",
        KERNELS,
        [
            ("if info.st_uid != os.geteuid():", "if False:"),
            ("if stat.S_ISLNK(info.st_mode):", "if False:"),
            (
                "        if was_open and others_may_write(",
                "        if False and others_may_write(",
            ),
            ("environment.set_native_temporary_folder(str(folder))", "pass"),
            ("        os.chmod(folder, 0o700)", "        pass"),
        ],
        ranks=(),
    ),
    *mistakes(
        "launcher/standard_streams.py",
        STREAMS,
        [
            (
                "data = data[os.write(descriptor, data[:size]) :]",
                "os.write(descriptor, data); data = b''",
            ),
            ("        except BlockingIOError:", "        except KeyError:"),
            ("poll.register(descriptor, select.POLLOUT)", "pass"),
            ("            os.open(os.devnull, os.O_RDWR)", "            pass"),
            (
                '        sys.stdout.reconfigure(errors="backslashreplace")',
                "        pass",
            ),
        ],
        ranks=(),
    ),
    *mistakes(
        "launcher/visible_text.py",
        TEXT,
        [
            (
                "if text.isprintable() and _INVISIBLE.search(text) is None:",
                "if text.isprintable():",
            ),
            ("or character in _HARMLESS", ""),
            (
                'return _LOOKS_OURS.sub("\\n  ", visible_lines(text))',
                "return visible_lines(text)",
            ),
            (
                '_LOOKS_OURS = re.compile(r"\\n(?=[^\\w\\n]*mlxdist)")',
                '_LOOKS_OURS = re.compile(r"\\n(?=mlxdist)")',
            ),
        ],
        ranks=(),
    ),
    *mistakes(
        "launcher/orphans.py",
        (
            "tests/launcher/test_signals.py",
            "tests/launcher/test_runner.py",
            "tests/world/test_watchdog.py",
        ),
        [
            ("        _end_mpirun(pid)", "        pass"),
        ],
        ranks=(),
    ),
]
