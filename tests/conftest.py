"""Fixtures and options of the tests; spmd.py has what a run under mpirun needs."""

import hashlib
import os
import shutil
import tempfile

import hypothesis
import pytest

from tests.support.spmd import Spmd

SPMD = pytest.StashKey()
TEMPORARY = pytest.StashKey()

# Ranks must try the same examples, or their collectives part.
hypothesis.settings.register_profile(
    "spmd", derandomize=True, database=None, deadline=None
)
hypothesis.settings.register_profile("serial", deadline=None)


def pytest_addoption(parser):
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
    under_mpi = config.getoption("--with-mpi")
    hypothesis.settings.load_profile("spmd" if under_mpi else "serial")
    if not under_mpi:
        return
    import mlxdist

    world = mlxdist.init()  # first: mpi4py starts nothing by itself from here on
    if world.rank:  # one report file, rank 0's
        config.option.xmlpath = None
    # pytest removes what earlier runs left, at which ranks get into each other's way.
    config.stash[TEMPORARY] = tempfile.mkdtemp(prefix="mlxdist-tests-rank-")
    config.option.basetemp = os.path.join(config.stash[TEMPORARY], "tmp")


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    if session.config.getoption("--with-mpi"):
        from mpi4py import MPI

        plugin = Spmd(session.config, MPI, MPI.COMM_WORLD.Dup())
        session.config.stash[SPMD] = plugin
        session.config.pluginmanager.register(plugin, "spmd")


def pytest_unconfigure(config):
    plugin = config.stash.get(SPMD, None)
    if plugin is not None and plugin.rank == 0:
        shutil.rmtree(plugin.folder, ignore_errors=True)
    if TEMPORARY in config.stash:
        shutil.rmtree(config.stash[TEMPORARY], ignore_errors=True)


@pytest.fixture(scope="session")
def world():
    """The world of this run: of N ranks under mpirun, of one without."""
    import mlxdist

    return mlxdist.init()


@pytest.fixture
def shared_folder(request, tmp_path):
    """An empty folder that is the same on all ranks."""
    plugin = request.config.stash.get(SPMD, None)
    if plugin is None:
        return tmp_path
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    folder = plugin.folder / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def mpi_job(tmp_path):
    """Starts a real job: see jobs.mpi_job, with a folder for the script's source."""
    from tests.support.jobs import mpi_job

    def start(n, script, *arguments, **options):
        return mpi_job(n, script, *arguments, folder=tmp_path, **options)

    return start
