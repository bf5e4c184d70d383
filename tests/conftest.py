"""Options and fixtures of the tests. support/spmd.py combines the ranks of a run."""

import hashlib
import os
import resource
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

from tests.support import jobs, signal_state
from tests.support.cases import RANKS, all_marked, cases_on
from tests.support.fake_hosts import hosts  # noqa: F401
from tests.support.hangs import Hangs
from tests.support.suite import RUNNING_TEST

PLUGIN = pytest.StashKey()
HANGS = pytest.StashKey()  # a file for the reports of hanging tests, if wanted
RANK_FOLDER = pytest.StashKey()

# All ranks must try the same examples, else their collectives do not match.
hypothesis.settings.register_profile(
    "spmd",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "serial",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def pytest_addoption(parser):
    parser.addoption(
        "--cases-on",
        type=int,
        choices=RANKS,
        help="only the tests and cases that are dealt to this number of ranks",
    )
    parser.addini(
        "spmd_grace",
        "seconds that a rank which failed waits for the others before it ends the job",
        default="20",
    )
    parser.addini(
        "spmd_slack",
        "seconds after a test's own timeout at which the whole job is ended",
        default="15",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    signal_state.restore()
    under_mpi = config.getoption("--with-mpi")
    hypothesis.settings.load_profile("spmd" if under_mpi else "serial")
    path = os.environ.pop(RUNNING_TEST, None)
    if path is not None:
        config.stash[HANGS] = Path(path).with_suffix(".hangs")
        config.pluginmanager.register(RunningTest(Path(path)), "running")
    elif given := getattr(config, "workerinput", {}).get("hangs"):
        config.stash[HANGS] = Path(given)
    if not under_mpi:
        return
    import mlxdist

    world = mlxdist.init()  # starts MPI, before pytest-mpi imports mpi4py
    if world.rank:  # only rank 0 writes files for who started the run
        config.option.xmlpath = None
        config.pluginmanager.unregister(name="running")
    # Ranks that shared pytest's folder would delete one another's files.
    config.stash[RANK_FOLDER] = tempfile.mkdtemp(prefix="mlxdist-tests-rank-")
    config.option.basetemp = os.path.join(config.stash[RANK_FOLDER], "tmp")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Give a process of pytest-xdist the file for its reports."""
    node.workerinput["hangs"] = str(node.config.stash.get(HANGS, ""))


class RunningTest:
    """Keeps the name of the running test in a file, for who finds no report."""

    def __init__(self, path):
        self.path = path

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid):
        self.path.write_text(nodeid)

    def pytest_sessionfinish(self):
        self.path.unlink(missing_ok=True)


def pytest_ignore_collect(collection_path, config):
    """Import no file whose tests the first mark of the expression leaves out."""
    if not collection_path.match("test_*.py"):
        return None
    words = config.getoption("markexpr").split()
    text = collection_path.read_text()
    if words[:2] == ["not", "mpi"]:
        return all_marked(text, "mpi") or None
    is_left_out = words[:1] in (["mpi"], ["alone"])
    return (is_left_out and f"pytest.mark.{words[0]}" not in text) or None


def min_size(item):
    """Return the number of ranks that a test needs."""
    mark = item.get_closest_marker("mpi")
    return mark.kwargs.get("min_size", 1) if mark else 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Take the wanted cases, and run tests of failing computations last.

    MLX counts a computation that failed as queued for ever, and blocks whoever queues
    more once about ten are.
    """
    ranks = config.getoption("--cases-on")
    if ranks is not None:
        kept = cases_on(ranks, [item.nodeid for item in items])
        kept |= {item.nodeid for item in items if min_size(item) > 2}
        others = [item for item in items if item.nodeid not in kept]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.nodeid in kept]
    items.sort(key=lambda item: item.get_closest_marker("fails_in_mlx") is not None)


def pytest_sessionstart(session):
    config = session.config
    hangs = Hangs(config, config.stash.get(HANGS, None))
    config.pluginmanager.register(hangs, "hangs")
    if config.getoption("--with-mpi"):
        from mpi4py import MPI

        from tests.support.spmd import Spmd

        plugin = Spmd(config, MPI.COMM_WORLD.Dup(), hangs)
        config.stash[PLUGIN] = plugin
        config.pluginmanager.register(plugin, "spmd")


def pytest_unconfigure(config):
    plugin = config.stash.get(PLUGIN, None)
    if plugin is not None and plugin.rank == 0:
        shutil.rmtree(plugin.folder, ignore_errors=True)
    if RANK_FOLDER in config.stash:
        shutil.rmtree(config.stash[RANK_FOLDER], ignore_errors=True)


@pytest.fixture(scope="session")
def world():
    """The world of this run: N ranks under mpirun, one rank without it."""
    import mlxdist

    return mlxdist.init()


@pytest.fixture(scope="session")
def mpi_group(world):
    """MLX's group of the ranks of `world` over MPI, whatever carries its data."""
    return world.split(0).group


@pytest.fixture
def shared_folder(request, tmp_path):
    """An empty folder, the same one on all ranks."""
    plugin = request.config.stash.get(PLUGIN, None)
    if plugin is None:
        return tmp_path
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    folder = plugin.folder / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def many_descriptors():
    """Descriptors up to 1023 are in use, which is the most that `select` takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors = [os.open(os.devnull, os.O_RDONLY)]
    while descriptors[-1] < 1023:
        descriptors.append(os.dup(descriptors[0]))
    yield
    for descriptor in descriptors:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def mpi_job(tmp_path):
    """`jobs.mpi_job` with the test's temporary folder."""

    def run(ranks, script, *arguments, **options):
        return jobs.mpi_job(ranks, script, *arguments, folder=tmp_path, **options)

    return run
