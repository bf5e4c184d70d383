"""A pytest plugin: the ranks of a run under mpirun report as one.

Under `mpirun -n N python -m pytest --with-mpi` each rank runs the same tests in the
same order. After each test the ranks tell one another how it went, so that

- a test fails on all ranks if it fails on one, and rank 0 prints that rank's traceback;
- the next test begins on all ranks together, and its collectives find their partners;
- a rank that skips what others run is an error.

Rank 0 alone prints, and its exit code stands for all. A rank that is stuck is ended by
pytest-timeout; one that failed while another waits for it in a collective ends the job
after `spmd_grace` seconds, with its failure in print. mpirun then ends the others.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from _pytest.config import create_terminal_writer
from _pytest.runner import runtestprotocol

COLLECTION_TIMEOUT = 120.0
LONGEST_TEXT = 20_000


class Exchange:
    """All ranks' messages to all ranks, as JSON bytes on a communicator of its own."""

    def __init__(self, mpi, comm):
        self.mpi, self.comm = mpi, comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.turn = 0

    def gather(self, message, *, patience=None, late=None):
        """Every rank's message, by rank; `late(missing)` is called after `patience` s.

        It polls rather than waits, so that it knows whom it waits for.
        """
        self.turn = (self.turn + 1) % 30_000
        data = json.dumps(message).encode()
        others = [rank for rank in range(self.size) if rank != self.rank]
        sends = [
            self.comm.Isend([data, self.mpi.BYTE], dest=rank, tag=self.turn)
            for rank in others
        ]
        answers = {self.rank: message}
        deadline = None if patience is None else time.monotonic() + patience
        while len(answers) < self.size or not self.mpi.Request.Testall(sends):
            if not self._receive(answers):
                time.sleep(0.0005)
            if deadline is not None and time.monotonic() > deadline:
                late([rank for rank in others if rank not in answers] or others)
        return [answers[rank] for rank in range(self.size)]

    def _receive(self, answers):
        status = self.mpi.Status()
        if not self.comm.Iprobe(tag=self.turn, status=status):
            return False
        data = bytearray(status.Get_count(self.mpi.BYTE))
        source = status.Get_source()
        self.comm.Recv([data, self.mpi.BYTE], source=source, tag=self.turn)
        answers[source] = json.loads(data)
        return True


class Muted(io.TextIOBase):
    """The terminal of a rank other than 0. What a timeout prints still gets through."""

    def __init__(self, rank):
        self.rank = rank
        self.said = False

    def write(self, text):
        # pytest-timeout prints from a thread of its own, and then ends the process.
        if threading.current_thread() is not threading.main_thread():
            if not self.said:
                self.said = True
                text = f"\nrank {self.rank}:\n{text}"
            sys.__stderr__.write(text)
        return len(text)

    def flush(self):
        sys.__stderr__.flush()


class Spmd:
    """The hooks. Registered by conftest.py in a run with --with-mpi."""

    def __init__(self, config, mpi, comm):
        self.config = config
        self.exchange = Exchange(mpi, comm)
        self.rank, self.size = self.exchange.rank, self.exchange.size
        self.grace = float(config.getini("spmd_grace"))
        # Beyond a test's own timeout: by then its stuck ranks have ended themselves.
        self.slack = float(config.getini("spmd_slack"))
        self.collection_errors = []
        self.deadline = float("inf")
        self.stderr = os.dup(2)
        self.end_after(2 * COLLECTION_TIMEOUT)
        own = tempfile.mkdtemp(prefix="mlxdist-tests-") if self.rank == 0 else ""
        folders = self.exchange.gather(own, patience=COLLECTION_TIMEOUT, late=self.late)
        self.folder = Path(folders[0])  # shared by all ranks
        if self.rank:
            reporter = config.pluginmanager.get_plugin("terminalreporter")
            reporter._tw = create_terminal_writer(config, Muted(self.rank))

    def end_after(self, seconds):
        """A last resort that no lock of Python's can stop. Each call replaces the last.

        pytest-timeout speaks first and says more, but it needs the interpreter.
        """
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.stderr)

    def end_job(self, reason):
        """Ends this rank at once, and mpirun thereby all others."""
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture(in_=False)
        print(f"\nrank {self.rank}: {reason}", file=sys.__stderr__, flush=True)
        sys.__stdout__.flush()
        os._exit(1)

    def late(self, missing):
        self.end_job(f"nothing was heard from {ranks(missing)} in time; the run ends")

    # The same tests in the same order

    def pytest_collectreport(self, report):
        if report.failed:
            self.collection_errors.append(f"{report.nodeid}\n{report.longreprtext}")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session):
        names = [item.nodeid for item in session.items]
        answers = self.exchange.gather(
            {
                "digest": hashlib.sha256("\n".join(names).encode()).hexdigest(),
                "count": len(names),
                "errors": self.collection_errors,
            },
            patience=COLLECTION_TIMEOUT,
            late=self.late,
        )
        for rank, answer in enumerate(answers):
            if answer["errors"]:
                text = "\n".join(answer["errors"])[:LONGEST_TEXT]
                pytest.exit(f"rank {rank} could not collect:\n{text}", returncode=2)
        if len({answer["digest"] for answer in answers}) > 1:
            own = self.exchange.gather(names)
            pytest.exit(describe_difference(own), returncode=2)

    # The same outcome of each

    def pytest_timeout_set_timer(self, item, settings):
        seconds = (settings.timeout or 1e6) + self.slack
        self.deadline = time.monotonic() + seconds
        self.end_after(seconds + self.slack)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        # This rank is no longer the one that may be stuck; let that one's timer speak.
        with contextlib.suppress(AttributeError):
            item.cancel_timeout()
        outcome, text = outcome_of(reports)
        agree(reports, self._exchange_outcomes(item, outcome, text), self.rank)
        for report in reports:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _exchange_outcomes(self, item, outcome, text):
        patience = max(self.slack, self.deadline - time.monotonic())
        if outcome in ("failed", "skipped"):
            patience = min(patience, self.grace)

        def late(missing):
            self.end_job(
                f"{item.nodeid} {outcome} here, and {ranks(missing)} did not come to "
                f"the end of it within {patience:.0f} s; the run ends.\n{text}"
            )

        message = {"where": item.nodeid, "outcome": outcome, "text": text}
        answers = self.exchange.gather(message, patience=patience, late=late)
        self._check_step(answers)
        return answers

    def _check_step(self, answers):
        steps = [answer.get("where") for answer in answers]
        if len(set(steps)) > 1:
            self.end_job(f"the ranks are out of step: {dict(enumerate(steps))}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        self.end_after(2 * COLLECTION_TIMEOUT)
        answers = self.exchange.gather(
            {"where": "the end", "status": int(exitstatus)},
            patience=COLLECTION_TIMEOUT,
            late=self.late,
        )
        self._check_step(answers)
        worst = max(answer["status"] for answer in answers)
        # mpirun kills the others once a rank exits with an error, and rank 0 still has
        # to print its report.
        session.exitstatus = worst if self.rank == 0 else 0


def outcome_of(reports):
    """How a test went on this rank, and the text that tells why."""
    for report in reports:
        if report.failed:
            where = "" if report.when == "call" else f"in its {report.when}:\n"
            return "failed", where + report.longreprtext[-LONGEST_TEXT:]
    for report in reports:
        if hasattr(report, "wasxfail"):
            return ("xfailed" if report.skipped else "xpassed"), report.wasxfail
        if report.skipped:
            return "skipped", str(report.longrepr[-1])
    return "passed", ""


def agree(reports, answers, rank):
    """Makes this rank's reports say what is true of all ranks."""
    outcomes = [answer["outcome"] for answer in answers]
    if len(set(outcomes)) == 1 and outcomes[0] != "failed":
        return
    failed = [r for r, outcome in enumerate(outcomes) if outcome == "failed"]
    others = {r: answers[r]["text"] for r in failed if r != rank}
    if rank in failed:
        report = next(report for report in reports if report.failed)
        report.sections += [(f"rank {r}", text) for r, text in others.items()]
        return
    report = next((report for report in reports if report.when == "call"), reports[0])
    report.outcome = "failed"
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    if failed:
        first = others[failed[0]]
        told = "\n\n".join(f"rank {r}:\n{text}" for r, text in others.items())
        report.longrepr = f"failed on {ranks(failed)}: {gist(first)}\n\n{told}"
    else:
        each = ", ".join(f"{o} on rank {r}" for r, o in enumerate(outcomes))
        report.longrepr = f"the ranks must take the same course, but it {each}"


def gist(text):
    """The line of a traceback that says what went wrong."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return errors[0] if errors else text.strip().splitlines()[-1]


def ranks(numbers):
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def describe_difference(collected):
    """Which tests only some ranks collected, or where their order parts."""
    lines = ["the ranks collected different tests:"]
    for rank, names in enumerate(collected):
        own = [name for name in names if any(name not in o for o in collected)]
        lines.append(f"rank {rank}: {len(names)} tests; not everywhere: {own[:10]}")
    for names in zip(*collected, strict=False):
        if len(set(names)) > 1:
            lines.append(f"first difference: {dict(enumerate(names))}")
            break
    return "\n".join(lines)
