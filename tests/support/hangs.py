"""Pytest plugin that ends a run whose test exceeds its time, and says where it hangs.

It takes the place of pytest-timeout's own report, which has one process only, is long,
and is lost in a process of pytest-xdist. mpirun ends the other ranks once one has
ended: the first of them therefore reports on all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from . import stacks

MAX_OUTPUT = 2000  # characters of what the test has printed


class Hangs:
    """Hooks of the plugin, registered by conftest.py in each process that runs tests.

    Args:
        report: a file to which the report is added, for who sums up several runs.

    Attributes:
        process: this one, which answers whoever asks for its stacks.
    """

    def __init__(self, config: pytest.Config, report: Path | None):
        self._config, self._report = config, report
        self._stderr = os.dup(2)
        self._own_folder = Path(tempfile.mkdtemp(prefix="mlxdist-tests-hangs-"))
        self.process = stacks.answer(self._own_folder / "stacks")
        self._rank, self._folder = 0, self._own_folder
        self._processes: Sequence[stacks.Process] = [self.process]

    def join(
        self, rank: int, processes: Sequence[stacks.Process], folder: Path
    ) -> None:
        """Report on the processes of all ranks, once; all give the same folder."""
        self._rank, self._processes, self._folder = rank, processes, folder

    def pytest_unconfigure(self) -> None:
        shutil.rmtree(self._own_folder, ignore_errors=True)

    @pytest.hookimpl
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        reason = f"{item.nodeid} did not end within {settings.timeout:g} s"
        timer = threading.Timer(settings.timeout, self.end, (reason,))
        timer.daemon = True

        def cancel() -> None:
            timer.cancel()
            timer.join()

        item.cancel_timeout = cancel  # type: ignore[attr-defined]
        timer.start()
        return True  # pytest-timeout sets none of its own

    def end(self, reason: str) -> NoReturn:
        """End this process at once, and through mpirun all ranks, after a report."""
        try:
            self._write(f"rank {self._rank}: {reason}{self._output()}")
            if self._is_first():
                each = stacks.stacks(self._processes)
                self._write(
                    "\n".join(f"rank {rank}:\n{text}" for rank, text in enumerate(each))
                )
            else:
                time.sleep(2 * stacks.PATIENCE)  # the first one ends all
        finally:
            os._exit(1)

    def _is_first(self) -> bool:
        try:
            (self._folder / "reported").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _output(self) -> str:
        """Return the end of what the test has printed, and let this process print."""
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if capture is None:
            return ""
        capture.suspend_global_capture(in_=False)
        text = "".join(filter(None, capture.read_global_capture()))
        return (
            f"\nIt has printed:\n{text[-MAX_OUTPUT:].rstrip()}" if text.strip() else ""
        )

    def _write(self, text: str) -> None:
        os.write(self._stderr, f"\n{text}\n".encode())
        if self._report is not None:
            with self._report.open("a") as file:
                file.write(f"{text}\n")
