"""Mistakes in the reports of a run."""

from tests.mutations.mutation import Mutation

JSON = ("tests/trackers/test_json_lines.py",)
REPORT = ("tests/trackers/test_report.py",)
LOG = ("tests/trackers/test_run_log.py",)
PROGRESS = ("tests/trackers/test_progress.py",)
SERVICES = ("tests/trackers/test_services.py",)

MUTATIONS = [
    Mutation("trackers/json_lines.py", "os.ftruncate(self._file, size)", "pass", JSON),
    Mutation("trackers/json_lines.py", "<= done]", "< done]", JSON),
    Mutation("trackers/json_lines.py", "if not os.path.lexists(x)", "", JSON),
    Mutation("trackers/json_lines.py", "| os.O_NOFOLLOW", "", JSON),
    Mutation("trackers/json_lines.py", "value if is_finite else None", "value", JSON),
    Mutation(
        "trackers/json_lines.py",
        "                self._has_warned = True",
        "                pass",
        JSON,
    ),
    Mutation(
        "trackers/report.py", "(weights > 0) | (not weighted)", "weights >= 0", REPORT
    ),
    Mutation("trackers/report.py", "int(ranks[least])", "least", REPORT),
    Mutation(
        "trackers/report.py", "if (values == values[0]).all():", "if False:", REPORT
    ),
    Mutation(
        "trackers/report.py", "if len(set(of_ranks)) > 1:", "if False:", LOG, (2,)
    ),
    Mutation("trackers/report.py", "fingerprint(step),", "0,", LOG, (2,)),
    Mutation(
        "trackers/interval.py",
        "self._waited_before += self._total() - waited",
        "pass",
        LOG,
        (2,),
    ),
    Mutation(
        "trackers/window.py",
        "self._counts_tokens |= tokens is not None",
        "self._counts_tokens |= bool(tokens)",
        LOG,
        (2,),
    ),
    Mutation(
        "trackers/window.py",
        "            self._no_numbers[name] = value",
        "            raise",
        LOG,
        (2,),
    ),
    Mutation(
        "trackers/report.py", "if not 0 <= counts < math.inf:", "if False:", LOG, (2,)
    ),
    Mutation("trackers/report.py", "if name in numbers:", "if False:", LOG, (1,)),
    Mutation(
        "trackers/progress.py",
        "print(Text(self._title))",
        "print(self._title)",
        PROGRESS,
    ),
    Mutation(
        "trackers/run_log.py",
        "tokens = self._outputs.trained_tokens if self._outputs else 0.0",
        "tokens = 0.0",
        LOG,
        (1,),
    ),
    Mutation(
        "trackers/run_log.py",
        "and self._done != self._steps:",
        "and True:",
        LOG,
        (1,),
    ),
    Mutation(
        "trackers/guarded.py",
        "                self._has_warned = True",
        "                pass",
        LOG,
        (1,),
    ),
    Mutation(
        "trackers/run_info.py",
        "if continues and isinstance",
        "if isinstance",
        SERVICES,
        (1,),
    ),
    Mutation(
        "trackers/services.py",
        "except ImportError as error:",
        "except OSError as error:",
        SERVICES,
        (1,),
    ),
    Mutation(
        "trackers/outputs.py", "if name not in self._warned:", "if True:", LOG, (1,)
    ),
    Mutation(
        "trackers/progress.py",
        "if self._live.is_started and self._is_due(_REDRAW)",
        "if self._live.is_started",
        PROGRESS,
    ),
    Mutation(
        "trackers/progress.py",
        "self._print(report.values)",
        "self._print(self._figures)",
        PROGRESS,
    ),
    Mutation(
        "comm/flight_recorder.py",
        "Waits() if parent is None else parent.waits",
        "Waits()",
        ("tests/comm/test_flight_recorder.py",),
    ),
]
