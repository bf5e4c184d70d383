"""Pytest plugin for SPMD tests: the ranks of a run under mpirun report as one.

Under `mpirun -n N python -m pytest --with-mpi` all ranks run the same tests in the same
order. After each test they exchange their outcomes, so that

- a test fails on all ranks if it fails on one, and rank 0 prints that rank's traceback;
- all ranks start the next test together, and its collectives find their partners;
- a skip on some ranks only is an error.

Only rank 0 prints, and its exit code is that of the run. A rank that hangs ends the
job, and prints what every rank was doing (hangs.py). So does a rank that fails while
another waits for it in a collective, after `spmd_grace` seconds; it prints its failure,
too.

The existing plugins do not fit. pytest-mpi adds the marks and options used here, but
does not combine outcomes. mpi-pytest and pytest-isolate-mpi start one mpirun per test:
about a second each, an hour for the tests of this package on 1 to 4 ranks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import pytest
from _pytest.config import create_terminal_writer
from _pytest.runner import runtestprotocol
from mpi4py import MPI

from tests.support.hangs import Hangs
from tests.support.outcomes import MAX_TEXT, Outcome, combine, outcome_of, ranks_text
from tests.support.stacks import Process

COLLECTION_TIMEOUT = 120.0  # seconds

OnTimeout = Callable[[Sequence[int]], NoReturn]


class Channel:
    """All-gather of JSON messages, on a communicator of its own, with a timeout."""

    def __init__(self, comm: MPI.Intracomm):
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self._round = 0

    def all_gather(
        self,
        message: Any,
        *,
        timeout: float = float("inf"),
        on_timeout: OnTimeout | None = None,
    ) -> list[Any]:
        """Return every rank's message, by rank.

        It polls, so that it knows which ranks are missing.

        Args:
            on_timeout: called with the missing ranks after `timeout` seconds.
        """
        self._round = (self._round + 1) % 30_000
        data = json.dumps(message).encode()
        others = [rank for rank in range(self.size) if rank != self.rank]
        sends = [
            self.comm.Isend([data, MPI.BYTE], dest=rank, tag=self._round)
            for rank in others
        ]
        messages = {self.rank: message}
        deadline = time.monotonic() + timeout
        while len(messages) < self.size or not MPI.Request.Testall(sends):
            if not self._receive(messages):
                time.sleep(0.0001)
            if on_timeout is not None and time.monotonic() > deadline:
                on_timeout([rank for rank in others if rank not in messages] or others)
        return [messages[rank] for rank in range(self.size)]

    def _receive(self, messages: dict[int, Any]) -> bool:
        status = MPI.Status()
        if not self.comm.Iprobe(tag=self._round, status=status):
            return False
        data = bytearray(status.Get_count(MPI.BYTE))
        source = status.Get_source()
        self.comm.Recv([data, MPI.BYTE], source=source, tag=self._round)
        messages[source] = json.loads(data)
        return True


class MutedTerminal(io.TextIOBase):
    """Terminal of the ranks other than 0."""

    def write(self, text: str) -> int:
        return len(text)


class Spmd:
    """Hooks of the plugin. Registered by conftest.py in a run with --with-mpi."""

    def __init__(self, config: pytest.Config, comm: MPI.Intracomm, hangs: Hangs):
        self.config, self.hangs = config, hangs
        self.channel = Channel(comm)
        self.rank = self.channel.rank
        self.grace = float(config.getini("spmd_grace"))
        # On top of a test's own timeout: a rank that hangs shall report first.
        self.slack = float(config.getini("spmd_slack"))
        self.collection_errors: list[str] = []
        self.deadline = float("inf")
        self.stderr = os.dup(2)
        self.exit_after(2 * COLLECTION_TIMEOUT)
        folder = tempfile.mkdtemp(prefix="mlxdist-tests-") if self.rank == 0 else ""
        self.folder = Path(self._all_gather(folder)[0])  # shared by all ranks
        processes = [Process(*each) for each in self._all_gather(hangs.process)]
        hangs.join(self.rank, processes, self.folder)
        if self.rank:
            reporter = config.pluginmanager.get_plugin("terminalreporter")
            assert reporter is not None
            reporter._tw = create_terminal_writer(config, MutedTerminal())

    def exit_after(self, seconds: float) -> None:
        """End this process after a time; replaces the time that was set before.

        A last resort, in C: `Hangs`, which reports more, needs Python's lock.
        """
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.stderr)

    def _all_gather(self, message: Any) -> list[Any]:
        return self.channel.all_gather(
            message,
            timeout=COLLECTION_TIMEOUT,
            on_timeout=lambda missing: self.hangs.end(
                f"no message from {ranks_text(missing)} in time; the run ends"
            ),
        )

    # -- all ranks collect the same tests

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.collection_errors.append(f"{report.nodeid}\n{report.longreprtext}")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        names = [item.nodeid for item in session.items]
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        results = self._all_gather([digest, self.collection_errors])
        for rank, (_, errors) in enumerate(results):
            if errors:
                text = "\n".join(errors)[:MAX_TEXT]
                pytest.exit(f"rank {rank} could not collect:\n{text}", returncode=2)
        if len({digest for digest, _ in results}) > 1:
            pytest.exit(describe_difference(self._all_gather(names)), returncode=2)

    # -- each test has one outcome

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> None:
        seconds = (settings.timeout or 1e6) + self.slack
        self.deadline = time.monotonic() + seconds
        self.exit_after(seconds + self.slack)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool:
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        # This rank has finished. The timer of a rank that hangs must fire instead.
        with contextlib.suppress(AttributeError):
            item.cancel_timeout()  # type: ignore[attr-defined]
        outcomes = self._exchange(outcome_of(item.nodeid, reports))
        combine(reports, outcomes, self.rank)
        for report in reports:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _exchange(self, outcome: Outcome) -> list[Outcome]:
        timeout = max(self.slack, self.deadline - time.monotonic())
        if outcome.result in ("failed", "skipped"):
            timeout = min(timeout, self.grace)

        def end(missing: Sequence[int]) -> NoReturn:
            self.hangs.end(
                f"{outcome.test} {outcome.result} here, and {ranks_text(missing)} did "
                f"not finish it within {timeout:.0f} s; the run ends.\n{outcome.text}"
            )

        messages = self.channel.all_gather(
            asdict(outcome), timeout=timeout, on_timeout=end
        )
        self._check_in_step([message.get("test") for message in messages])
        return [Outcome(**message) for message in messages]

    def _check_in_step(self, tests: list[str | None]) -> None:
        if len(set(tests)) > 1:
            self.hangs.end(f"the ranks are out of step: {dict(enumerate(tests))}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self.exit_after(2 * COLLECTION_TIMEOUT)
        messages = self._all_gather({"test": "the end", "exit": int(exitstatus)})
        self._check_in_step([message.get("test") for message in messages])
        # mpirun kills the other ranks once one exits with an error, and rank 0 has
        # still to print its report.
        worst = max(message["exit"] for message in messages)
        session.exitstatus = worst if self.rank == 0 else 0


def describe_difference(collected: Sequence[Sequence[str]]) -> str:
    """Return which tests only some ranks have collected, and the first difference."""
    lines = ["the ranks collected different tests:"]
    for rank, names in enumerate(collected):
        extra = [name for name in names if any(name not in o for o in collected)]
        lines.append(f"rank {rank}: {len(names)} tests; not on all ranks: {extra[:10]}")
    for names in zip(*collected, strict=False):
        if len(set(names)) > 1:
            lines.append(f"first difference: {dict(enumerate(names))}")
            break
    return "\n".join(lines)
