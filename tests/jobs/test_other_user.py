"""Another user of the machine, who plants files where a job of this user looks."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlxdist.launcher import orphans
from mlxdist.world import timeline
from tests.support import jobs, other_user

pytestmark = other_user.NEEDS_ROOT

# The first line makes a kernel, of which the name is the same wherever it runs.
KERNEL = """
import mlx.core as mx
kernel = mx.compile(lambda x: mx.exp(x) * 2 + x)
value = kernel(mx.zeros(8)).tolist()
assert value == 8 * [2.0], value
"""
JOB = f"""
import mlxdist
{KERNEL}
world = mlxdist.init()
world.barrier()
print("ready", flush=True)
if world.rank == 1:
    raise ValueError("a failure")
world.barrier()
"""
# A library that leaves a file when it is loaded.
LIBRARY = """
cat >lib.c <<END
#include <fcntl.h>
__attribute__((constructor)) static void leave(void) {
    open("$1/loaded", O_CREAT | O_RDWR, 0666);
}
void $2(void) {}
END
gcc -shared -fPIC lib.c -o "$3/lib$2.so"
"""


@pytest.fixture(scope="module")
def other():
    """The other user, with a folder to which both can write."""
    folder = Path(tempfile.gettempdir(), f"mlxdist-shared-{secrets.token_hex(6)}")
    yield from other_user.make(folder)


@pytest.fixture(scope="module")
def kernel_folder(tmp_path_factory):
    """A folder of kernels as MLX makes it, with the one of the script."""
    folder = tmp_path_factory.mktemp("kernels")
    run_kernel(folder)
    (library,) = folder.glob("mlx/*/cpu/lib*.so")
    return library.parent


def run_kernel(temporary):
    """Run a kernel with MLX alone."""
    command = [sys.executable, "-c", KERNEL]
    return jobs.run(command, env={"TMPDIR": str(temporary)})


@pytest.fixture
def planted(other, kernel_folder):
    """What the other user put into the shared folder.

    A library in the place of a kernel, and a file or link for each name of a file that
    a job writes: to a file of this user's, which is returned.
    """
    folder = other.folder
    victim = folder / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    version = kernel_folder.parent.name
    (library,) = kernel_folder.glob("lib*.so")
    name = library.stem.removeprefix("lib")
    other.sh(
        f"mkdir -m 777 mlx mlxdist-postmortem mlxdist-{os.geteuid()} logs && "
        f"mkdir -p mlx/{version}/cpu && chmod -R 777 mlx && "
        "ln -s ../victim mlxdist-postmortem/rank-0.jsonl && "
        "for name in logs/rank-0.log logs/rank-1.log logs/mpirun.log; do "
        "ln -s ../victim $name; done && ln -s victim trace.json"
    )
    other.sh(LIBRARY, folder, name, f"{folder}/mlx/{version}/cpu")
    return victim


def test_nothing_planted_runs_in_a_job_or_lets_it_overwrite_a_file(other, planted):
    folder = other.folder
    alone = run_kernel(folder)
    loaded = folder / "loaded"
    assert loaded.exists(), alone.stderr  # MLX alone runs the library
    loaded.unlink()

    (folder / "job.py").write_text(JOB)
    command = [*jobs.MLXDIST_RUN, "-n", "2", "--log-dir", "logs"]
    command += ["--timeline", "trace.json", "--report", "report.json", "job.py"]
    result = jobs.run(command, env={"TMPDIR": str(folder)}, cwd=folder)
    assert result.returncode == 1, result.stderr
    assert result.stdout.count("ready") == 2, result.stderr
    assert not loaded.exists(), result.stderr
    assert planted.read_text() == "precious"
    assert f"{folder}/mlx belongs to user {other.name}" in result.stderr

    # Each file of the job is this user's, and where it was said to be.
    words = result.stderr.partition("doctor --postmortem ")[2].split()
    records = Path(words[0])
    assert folder not in records.parents
    names = {path.name for path in records.iterdir()}
    assert {"rank-0.jsonl", "rank-1.jsonl", "outcome.json"} <= names
    assert not list((folder / "mlxdist-postmortem").glob("*/"))
    for path in (*records.iterdir(), folder / "trace.json", folder / "report.json"):
        assert not path.is_symlink()
        assert not other.owns(path)
        assert path.stat().st_mode & 0o077 == 0, path
    assert "a failure" in (folder / "logs" / "rank-1.log").read_text()
    other.sh("! cat trace.json || exit 1; ! cat report.json || exit 1")
    shutil.rmtree(records)


# Holds the lock of a file, as a rank does while it lives.
LOCK = """
import fcntl, sys, time
with open(sys.argv[1], "r+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(flush=True)
    time.sleep(60)
"""


def test_end_of_a_job_ends_no_process_that_another_user_names(other):
    """Once a job has ended, its folder gets a name that could be guessed before."""
    run_dir = other.folder / "mlxdist-run-x"
    run_dir.mkdir(mode=0o700)
    ended, sleep = Path(f"{run_dir}.ended"), ["sleep", "60"]
    with subprocess.Popen(sleep, start_new_session=True) as sleeper:
        other.sh(f"mkdir {ended}; echo {sleeper.pid} >{ended}/rank-0.pid")
        command = [sys.executable, "-c", LOCK, f"{ended}/rank-0.pid"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as lock:
            lock.stdout.readline()
            orphans.end_ranks(str(run_dir))
            lock.kill()
        was_ended = sleeper.poll() is not None
        sleeper.kill()
    assert not was_ended
    assert not run_dir.exists()


@pytest.mark.parametrize("plant", ["mkfifo trace", "ln -s victim trace", "echo >trace"])
def test_timeline_takes_nothing_from_another_users_file(plant, other):
    folder = other.folder
    (folder / "victim").write_text("precious")
    other.sh(f"rm -f trace; {plant}")
    timeline.add_events(folder / "trace", [{"name": "x"}])
    assert (folder / "trace").read_text() == '{"traceEvents": [{"name": "x"}]}\n'
    assert not other.owns(folder / "trace")
    assert (folder / "victim").read_text() == "precious"
    (folder / "trace").unlink()
