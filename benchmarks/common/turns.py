"""Contenders that can't share a process take turns all the same.

What one sets in its process can't be undone: the allocator's options, who started MPI,
PyTorch's threads. So each is a job of its own that lives as long as the benchmark. Its
ranks sleep in a read of a Unix socket until it is their turn, which takes no time from
whose turn it is; then they do what they are asked, reply, and sleep again.

Here is the benchmark's side; `answer_turns` is the ranks'.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from mlxdist.launcher import openmpi

from .environment import BENCHMARKS, ROOT

START_SECONDS = 90.0
PATIENCE = 10.0  # seconds that a job gets to end by itself
_SOCKET = "MLXDIST_BENCH_SOCKET"
_PLAYER = "MLXDIST_BENCH_PLAYER"
# What a rank needs to take turns; another host's ranks have to be given it.
FORWARDED = (_SOCKET, _PLAYER, "PYTHONPATH", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Player:
    """A job that takes turns: how to start it, and how many of its ranks reply.

    `commands` is one mpirun, or one command for each rank.
    """

    name: str
    ranks: int
    commands: Sequence[Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


def mpi_player(
    name: str,
    ranks: int,
    script: Path,
    *arguments: str,
    cluster: Any = None,
    **environment: str,
) -> Player:
    """A player whose ranks mpirun starts, one thread each.

    Args:
        arguments: the script's.
        cluster: a VirtualCluster whose hosts to run on; this machine where it is None.
        environment: variables of all ranks.
    """
    program = [sys.executable, os.fspath(script), *arguments]
    if cluster is not None:
        passed = (_SOCKET, _PLAYER, "PYTHONPATH", "OMP_NUM_THREADS", *environment)
        exports = [word for variable in passed for word in ("-x", variable)]
        command = cluster.mpirun(ranks, program, arguments=exports)
        return Player(name, ranks, [command], environment)
    command = [openmpi.find_mpirun(), "-n", str(ranks), "--host", f"localhost:{ranks}"]
    command += ["--bind-to", "none", "--stdin", "none"]
    command += ["--mca", "mpi_yield_when_idle", "1"] * (ranks > (os.cpu_count() or 1))
    command += ["--allow-run-as-root"] * (os.geteuid() == 0)
    return Player(name, ranks, [[*command, *program]], environment)


class Turns:
    """The players of a benchmark, started together, ended when the block ends.

    Raises:
        RuntimeError: a player ended early or took too long, with what it wrote last.
    """

    def __init__(self, players: Sequence[Player], *, timeout: float = 300.0):
        self.players = {player.name: player for player in players}
        self.timeout = timeout
        self._folder = Path(tempfile.mkdtemp(prefix="mlxdist-bench-"))
        self._jobs: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._lines: dict[str, dict[int, _Line]] = {}

    def __enter__(self) -> Turns:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # ends as Ctrl-C does
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(os.fspath(self._folder / "s"))
                listener.listen(sum(p.ranks for p in self.players.values()))
                for player in self.players.values():
                    self._jobs[player.name] = self._start(player)
                self._accept(listener)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def ask(self, player: str, **request: Any) -> list[dict[str, Any]]:
        """One turn: sends the request to all ranks; their replies, by rank."""
        lines = self._lines[player]
        deadline = time.monotonic() + self.timeout
        try:
            for line in lines.values():
                line.send(request)
            return [lines[rank].receive(deadline) for rank in sorted(lines)]
        except (OSError, EOFError) as error:
            self._blame(player, error)

    def _start(self, player: Player) -> list[subprocess.Popen[bytes]]:
        environment = {**openmpi.without_mpi(os.environ), "OMP_NUM_THREADS": "1"}
        before = environment.get("PYTHONPATH", "")
        folders = [os.fspath(BENCHMARKS), os.fspath(ROOT), before]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        environment[_SOCKET] = os.fspath(self._folder / "s")
        environment[_PLAYER] = player.name
        # Not where mpiruns that were killed have left files in the way.
        environment["PRTE_MCA_prte_local_tmpdir_base"] = os.fspath(self._folder)
        with self._log(player.name).open("wb") as log:
            return [
                subprocess.Popen(
                    command,
                    env={**environment, **player.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for command in player.commands
            ]

    def _accept(self, listener: socket.socket) -> None:
        deadline = time.monotonic() + START_SECONDS
        listener.settimeout(0.2)
        missing = {player.name: player.ranks for player in self.players.values()}
        while any(missing.values()):
            try:
                line = _Line(listener.accept()[0])
            except TimeoutError:
                self._check_alive(missing, deadline)
                continue
            hello = line.receive(deadline)
            self._lines.setdefault(hello["player"], {})[hello["rank"]] = line
            missing[hello["player"]] -= 1

    def _check_alive(self, missing: Mapping[str, int], deadline: float) -> None:
        for name, count in missing.items():
            ended = count and any(job.poll() for job in self._jobs[name])
            if ended:
                self._blame(name, EOFError("it ended before its first turn"))
            if count and time.monotonic() > deadline:
                self._blame(name, TimeoutError(f"no start in {START_SECONDS:.0f} s"))

    def _log(self, player: str) -> Path:
        return self._folder / f"{list(self.players).index(player)}.log"

    def _blame(self, player: str, error: Exception) -> NoReturn:
        for job in self._jobs[player]:  # its last words come with its end
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(2)
        said = self._log(player).read_text(errors="replace").strip()
        raise RuntimeError(f"{player}: {error}\n{said[-3000:]}") from error

    def _end(self) -> None:
        for lines in self._lines.values():
            for line in lines.values():
                line.close()
        jobs = [job for some in self._jobs.values() for job in some]
        deadline = time.monotonic() + PATIENCE
        for job in jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(max(0.1, deadline - time.monotonic()))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for job in jobs:
                _end_job(job, number)
        shutil.rmtree(self._folder, ignore_errors=True)


def _end_job(job: subprocess.Popen[bytes], number: int) -> None:
    if job.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(5)


def answer_turns(rank: int, answer: Callable[..., dict[str, Any]]) -> None:
    """A rank's side: calls `answer(**request)` at each turn until there are no more.

    Between turns the process sleeps. It returns when the benchmark has ended, however
    that came about.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[_SOCKET])
        line = _Line(connection)
        line.send({"player": os.environ[_PLAYER], "rank": rank})
        while True:
            try:
                request = line.receive(None)
            except EOFError:
                return
            line.send(answer(**request))


class _Line:
    """JSON values over a socket, one a line."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._rest = b""

    def send(self, value: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._rest:
            self._wait(deadline)
            got = self._connection.recv(1 << 20)
            if not got:
                raise EOFError("it ended in its turn")
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value

    def _wait(self, deadline: float | None) -> None:
        if deadline is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError("it took too long")

    def close(self) -> None:
        self._connection.close()
