"""Runs a plan: `mlxdist run` on virtual hosts, with faults from outside of it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import jobs
from tests.support.cluster import VirtualCluster

from .kinds import Kind
from .plan import Plan
from .verdict import Observation

PATIENCE = 90.0
_GRACE = 15.0  # seconds beyond `init()`'s time-out, until no process may be left
# Seconds until a kernel tries again to reach a host whose wire was cut.
_NEIGHBOURS_TIMEOUT = 4.0
_MOST_LOAD = 4.0
_DISK = "12m"
_POLL = 0.02


def load() -> float:
    """Return by which factor a busy machine may be slower than an idle one."""
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), _MOST_LOAD)


class RunningJob:
    """The virtual hosts and the folder of a job. A context manager.

    Args:
        kinds: of fault, by name.
        patience: seconds beyond all time-outs, until a job on idle cores hangs.

    Attributes:
        folder: has the plan, the checkpoints in `saves`, and all files of the job.
        launcher: process id of `mlxdist run`.
    """

    def __init__(self, plan: Plan, kinds: dict[str, Kind], patience: float = PATIENCE):
        self.plan, self.launcher = plan, 0
        self._kinds, self._patience = kinds, patience
        self._lost_hosts: set[int] = set()  # daemons of Open MPI may stay there
        self.cluster = VirtualCluster(plan.hosts)
        self.folder = self.cluster.folder / "job"  # goes with the cluster
        for name in ("", "fired", "saves", "tmp", "tmp/mlx"):  # MLX keeps its kernels
            (self.folder / name).mkdir(mode=0o700)
        plan.write(self.folder / "plan.json")
        if plan.own_disks:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "saves"]
            for host in self.cluster.hosts:
                host.space.run(*mount, str(self.folder / "saves"))
        self._files_before = self._files()

    def __enter__(self) -> RunningJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()

    def run(self, first_attempt: int = 0) -> Observation:
        """Run the job to its end, or to its deadline, and return how it ended."""
        before = {path.name for path in (self.folder / "fired").iterdir()}
        began = time.monotonic()
        timeouts = self._timeouts()
        out, err = (self.folder / f"{x}{first_attempt}" for x in ("out", "err"))
        with out.open("w") as output, err.open("w") as errors:
            process = subprocess.Popen(
                self._command(first_attempt),
                env=jobs.clean_environment({"TMPDIR": str(self.folder / "tmp")}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        self.launcher = process.pid
        due: list[tuple[float, Callable[[], object]]] = []
        hung = False
        while process.poll() is None and not hung:
            time.sleep(_POLL)
            due = self._act(due + self._new_actions(before))
            hung = time.monotonic() - began > timeouts + self._patience * load()
        seconds = time.monotonic() - began
        # A rank may wait in MPI_Finalize for a stopped daemon, for up to 300 s.
        for host in range(1, len(self.cluster.hosts)):
            self.signal_daemon(host, signal.SIGCONT)
        leftovers = self._hanging() if hung else self._leftovers()
        self._end(process)
        for _, action in due:
            action()
        fired = {int(x.name) for x in (self.folder / "fired").glob("[0-9]*")}
        return Observation(
            process.returncode,
            hung,
            out.read_text(errors="replace"),
            err.read_text(errors="replace"),
            frozenset(fired),
            leftovers,
            seconds,
        )

    def _timeouts(self) -> float:
        """Return the seconds that all starts may take until the last time-out."""
        starts = self.plan.max_restarts + 1
        waits = sum(self._kinds[fault.kind].wait for fault in self.plan.faults)
        return starts * (self.plan.timeout + self.plan.time_limit) + waits

    def _command(self, first_attempt: int) -> list[str]:
        plan = self.plan
        run = ["env", "-C", str(self.folder)]
        if plan.hosts == 1:  # mpirun's files go where `mlxdist run` puts them
            for side in ("local", "remote"):
                run += ["-u", f"PRTE_MCA_prte_{side}_tmpdir_base"]
        run += jobs.MLXDIST_RUN
        if plan.hosts > 1:
            slots = plan.configuration.ranks // plan.hosts
            names = [f"{host.name}:{slots}" for host in self.cluster.hosts]
            run += ["-H", ",".join(names)]
        else:
            run += ["-n", str(plan.configuration.ranks)]
        variables = {"TMPDIR": self.folder / "tmp", "PYTHONPATH": jobs.ROOT}
        for name, value in variables.items():
            run += ["--env", f"{name}={value}"]
        if plan.time_limit:
            run += ["--timeout", str(plan.time_limit)]
        # An attempt by hand has no faults, and so needs no restarts.
        run += ["--max-restarts", str(0 if first_attempt else plan.max_restarts)]
        script = Path(__file__).with_name("training.py")
        run += [str(script), str(self.folder), str(first_attempt)]
        return self.cluster.command(run)

    def _new_actions(self, seen: set[str]) -> list[tuple[float, Callable[[], object]]]:
        """Return what to do, and when, about the faults since the last call."""
        now, due = time.monotonic(), []
        for path in sorted((self.folder / "fired").glob("[0-9]*")):
            if path.name not in seen:
                seen.add(path.name)
                fault = self.plan.faults[int(path.name)]
                kind = self._kinds[fault.kind]
                pid = int(path.read_text())
                due += [(now + x, y) for x, y in kind.actions(fault, self, pid)]
        return due

    @staticmethod
    def _act(
        due: list[tuple[float, Callable[[], object]]],
    ) -> list[tuple[float, Callable[[], object]]]:
        now = time.monotonic()
        for _, action in sorted((x for x in due if x[0] <= now), key=lambda x: x[0]):
            action()
        return [x for x in due if x[0] > now]

    # What faults use

    def send(self, pid: int, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def signal_mpirun(self, number: int) -> None:
        for program in ("mpirun", "prterun"):
            for pid in self.cluster.processes(0, program):
                self.send(pid, number)

    def signal_daemon(self, host: int, number: int) -> None:
        for pid in self.cluster.processes(host, "prted"):
            self.send(pid, number)

    def cut_wire(self, host: int) -> None:
        self._lost_hosts.add(host)
        self.cluster.cut(host)

    def fill_disk(self, host: int) -> None:
        """Write a file that leaves no room on a host's disk."""
        with (self._saves(host) / "filler").open("wb", buffering=0) as file:
            for nbytes in (2**20, 2**12):
                try:
                    while file.write(bytes(nbytes)) == nbytes:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free_disk(self, host: int) -> None:
        (self._saves(host) / "filler").unlink(missing_ok=True)

    def repair(self) -> None:
        """Mend the wires and free the disks, for a start by hand."""
        self._lost_hosts.clear()
        for index, host in enumerate(self.cluster.hosts):
            self.cluster.cut(index)
            self.cluster.mend(index)
            host.wire.restore()
            if self.plan.own_disks:
                self.free_disk(index)
        time.sleep(_NEIGHBOURS_TIMEOUT)

    # The end

    def _root(self, host: int) -> Path:
        return Path(f"/proc/{self.cluster.hosts[host].space.pid}/root")

    def _saves(self, host: int) -> Path:
        return self._root(host) / str(self.folder / "saves").lstrip("/")

    def _processes(self) -> list[int]:
        hosts = range(len(self.cluster.hosts))
        return [pid for host in hosts for pid in self.cluster.processes(host)]

    def _files(self) -> set[str]:
        """Return the files in shared memory and TMPDIR.

        Empty folders are Open MPI's: a world of one leaves them. Files of daemons that
        were killed on other hosts go with the cluster.
        """
        hosts = range(len(self.cluster.hosts))
        folders = [self._root(host) / "dev" / "shm" for host in hosts]
        paths = [path for folder in folders for path in folder.iterdir()]
        paths += (self.folder / "tmp").rglob("*")
        return {str(path) for path in paths if not path.is_dir()}

    def _remaining(self) -> list[int]:
        """Return the processes that should have ended by now."""
        daemons = {
            pid
            for host in self._lost_hosts
            for pid in self.cluster.processes(host)
            if pid not in self.cluster.processes(host, "python")
        }
        if daemons:  # a real ssh to a lost host ends by itself: ServerAliveInterval
            daemons |= {*self.cluster.processes(0, "sh")}
        return [pid for pid in self._processes() if pid not in daemons]

    def _leftovers(self) -> tuple[str, ...]:
        """Wait until nothing is left, not for ever, and return what is."""
        deadline = time.monotonic() + (self.plan.timeout + _GRACE) * load()
        while time.monotonic() < deadline:
            if not self._remaining() and self._files() <= self._files_before:
                return ()
            time.sleep(0.1)
        files = sorted(self._files() - self._files_before)
        return tuple(files) + describe(self._remaining())

    def _hanging(self) -> tuple[str, ...]:
        return describe(self._processes())

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left, so that the job can be started again."""
        for pid in {process.pid, *self._processes()}:
            if process.returncode is None or pid != process.pid:
                self.send(pid, signal.SIGKILL)
        process.wait()


def describe(pids: list[int]) -> tuple[str, ...]:
    """Return a line on each process."""
    if not pids:
        return ()
    ps = ["ps", "-o", "pid=,ppid=,stat=,etimes=,wchan:20=,args=", "-p"]
    done = subprocess.run([*ps, ",".join(map(str, pids))], capture_output=True)
    return tuple(done.stdout.decode(errors="replace").splitlines())
