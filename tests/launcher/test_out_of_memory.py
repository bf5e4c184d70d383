"""What `mlxdist run` says of a rank that Linux killed for want of memory."""

import re

import pytest

from mlxdist.launcher.out_of_memory import OutOfMemory, memory_limit
from mlxdist.launcher.outcome import Outcome, RankOutcome
from tests.support import jobs, memory_group

LIMIT = 200_000_000


@pytest.mark.skipif(
    memory_group.problem() is not None, reason=str(memory_group.problem())
)
def test_rank_killed_by_the_kernel_is_reported_with_the_limit(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("x = b'x' * 400_000_000")
    program = [*jobs.MLXDIST_RUN, "-n", "1", str(script)]
    with memory_group.memory_groups(1, LIMIT) as groups:
        done = jobs.run(groups.command(program), cwd=tmp_path)
        assert groups.kills == [1]
    assert done.returncode == 137
    # Linux counts the processes that it killed on the whole machine.
    message = re.sub(r"killed \d+ process(es)? ", "killed some ", done.stderr)
    assert message.splitlines()[-1] == (
        "mlxdist run: rank 0 of 1 was killed by SIGKILL; exit code 137. Linux ran out "
        "of memory, under the limit of 200 MB of this cgroup: it killed some during "
        "the job. `mlxdist plan` shows what would need less."
    )


@pytest.mark.parametrize(
    ("is_local", "signal", "kills", "text"),
    [
        (True, "SIGKILL", 9, "it killed 2 processes during"),
        (True, "SIGKILL", 7, ""),
        (True, "SIGTERM", 9, ""),
        (False, "SIGKILL", 9, ""),
    ],
)
def test_kernel_is_blamed_for_its_kills_during_a_job_on_this_machine(
    is_local, signal, kills, text, tmp_path
):
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 7\n")
    memory = OutOfMemory(is_local=is_local, vmstat=vmstat)
    vmstat.write_text(f"oom_kill {kills}\n")
    ended = Outcome(137, (RankOutcome(0, "killed", signal=signal),), message="x.")
    message = memory.explain(ended).message
    assert text in message if text else message == "x."


@pytest.mark.parametrize(
    ("lines", "files", "limit"),
    [
        ("4:memory:/a/b\n0::/", {"memory/a/b/memory.limit_in_bytes": "3000"}, 3000),
        (
            "4:cpu,memory:/a/b",
            {
                "cpu,memory/a/b/memory.limit_in_bytes": "9223372036854771712",
                "cpu,memory/a/memory.limit_in_bytes": "2000",
            },
            2000,
        ),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "1000"}, 1000),
        ("0::/a/b", {"a/b/memory.max": "3000", "a/memory.max": "2000"}, 2000),
        ("0::/../b", {"memory.max": "500"}, 500),
        ("4:memory:/of/host", {"memory/memory.limit_in_bytes": "700"}, 700),
        (
            "4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "9223372036854771712"},
            None,
        ),
        ("", {}, None),
    ],
)
def test_memory_limit_is_the_least_of_a_group_and_those_above(
    tmp_path, lines, files, limit
):
    process = tmp_path / "cgroup"
    process.write_text(lines)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    assert memory_limit(process, tmp_path / "groups") == limit


def test_memory_limit_without_control_groups_is_none(tmp_path):
    assert memory_limit(tmp_path / "none", tmp_path) is None
