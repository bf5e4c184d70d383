"""What a script finds when `rank_main` runs it, and the traceback that it leaves."""

import json
import os
import pwd

import pytest

from tests.support import jobs

SHOW = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], __name__, __file__, sys.stdin.read()]))
"""


def test_script_finds_what_python_gives_it(run, tmp_path):
    arguments = ["--map-by", ":", "--", "-n", "3", "", "a b", "$HOME", "'\"", "é"]
    done = run(SHOW, *arguments, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    path = str(tmp_path / "script.py")
    ranks = [json.loads(line) for line in done.stdout.splitlines()]
    assert ranks == 2 * [[[path, *arguments], str(tmp_path), "__main__", path, ""]]


def test_module_finds_what_python_gives_it(run_command, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").touch()
    (tmp_path / "pack/train.py").write_text(SHOW)
    command = [*run_command, "-n", "1", "-m", "pack.train", "-m", "x"]
    done = jobs.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = str(tmp_path / "pack/train.py")
    expected = [[path, "-m", "x"], str(tmp_path), "__main__", path, ""]
    assert json.loads(done.stdout) == expected


def test_script_finds_its_own_modules_and_no_mlxdist(run, tmp_path):
    """The script's folder may have modules named like those of the launcher."""
    for name in ("marks", "environment", "cores"):
        (tmp_path / f"{name}.py").write_text("here = True")
    done = run(
        "import sys, cores, environment, marks\n"
        "assert cores.here and environment.here and marks.here\n"
        "print({'mlxdist', 'mpi4py'} & {n.partition('.')[0] for n in sys.modules})",
        ranks=1,
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_script_without_a_home_finds_that_of_the_user(run_command, tmp_path):
    """As cron starts it. Open MPI can do nothing without HOME."""
    (tmp_path / "script.py").write_text("import os; print(os.environ['HOME'])")
    command = ["env", "-u", "HOME", *run_command, "-n", "1", "script.py"]
    done = jobs.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == pwd.getpwuid(os.getuid()).pw_dir


RAISES = """
def inner():
    raise ValueError('x')
inner()
"""


def test_traceback_has_frames_of_the_script_alone(run):
    done = run(RAISES, ranks=1)
    trace = done.stderr[: done.stderr.index("ValueError: x")]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in <module>" in trace
    assert "in inner" in trace
    assert "runpy" not in trace
    assert "rank_main" not in trace


def test_error_of_a_forked_child_is_printed_and_not_that_of_the_rank(run, tmp_path):
    source = "import os, sys\nif not os.fork(): raise KeyError('of a child')\n"
    source += "os.wait()\nif not os.fork(): sys.exit('text of a child')\n"
    source += "os.wait(); sys.exit(7)"
    done = run(source, ranks=1, options=["--report", "report.json"])
    assert done.returncode == 7
    assert done.stderr.count("KeyError: 'of a child'\n") == 1
    assert done.stderr.count("text of a child\n") == 1
    (rank,) = json.loads((tmp_path / "report.json").read_text())["ranks"]
    assert (rank["reason"], rank["location"]) == ("exit 7", f"{tmp_path}/script.py:5")


def test_script_that_is_interrupted_exits_with_130(run):
    assert run("raise KeyboardInterrupt", ranks=1).returncode == 130


def test_traceback_of_a_syntax_error_starts_with_the_script(run):
    done = run("def f(:\n", ranks=1)
    assert done.stderr.startswith('  File "')
    assert "SyntaxError" in done.stderr


@pytest.mark.parametrize("end", ["", "sys.exit(0)"])
def test_script_globals_live_until_its_exit_handlers_have_run(run, tmp_path, end):
    # No function here, which would keep the globals by itself.
    (tmp_path / "things.py").write_text("""
class Thing:
    def __del__(self):
        print("freed", flush=True)
""")
    done = run(
        "import atexit, sys, things\n"
        "thing = things.Thing()\n"
        f"atexit.register(print, 'at exit', flush=True)\n{end}",
        ranks=1,
    )
    assert done.stdout.split() == ["at", "exit", "freed"]
