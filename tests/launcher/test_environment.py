"""The process environment has one owner."""

import ast
import os
from pathlib import Path

import pytest

import mlxdist
from mlxdist.launcher import environment

PACKAGE = Path(mlxdist.__file__).parent
OWNER = "launcher/environment.py"
PREFIXES = (environment.PREFIX, *environment.MPI_PREFIXES)


def package_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def reads_environment(tree):
    """Return whether a module uses `os.environ`, or imports it from `os`."""
    names = {"environ", "getenv", "putenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.alias) and node.name in names)
        for node in ast.walk(tree)
    )


def names_variables(tree):
    """Return whether a module has a variable's name in a string but its docstrings."""
    docstrings = {id(x.value) for x in ast.walk(tree) if isinstance(x, ast.Expr)}
    return any(
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(PREFIXES)
        and id(node) not in docstrings
        for node in ast.walk(tree)
    )


def test_environment_is_touched_in_one_module():
    modules = {name for name, tree in package_files() if reads_environment(tree)}
    assert modules == {OWNER}


def test_environment_variables_are_named_in_one_module():
    modules = {name for name, tree in package_files() if names_variables(tree)}
    assert modules == {OWNER}


@pytest.mark.parametrize("arguments", [[], ["a b", "é"], ["x" * 200_000]])
def test_take_job_after_job_variables_returns_the_job(arguments, monkeypatch):
    job = {"script": "x.py", "arguments": arguments, "module": False, "cwd": "/"}
    variables = environment.job_variables(job)
    assert max(map(len, variables.values())) <= 2**16
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.take_job() == job
    assert not any(environment.get(name) for name in variables)


def test_without_mpi_keeps_the_users_variables():
    of_user = {"PATH": "p", "MLXDIST_RESTARTS": "1", "MLXDIST_TIMELINE": "t"}
    launchers = {
        "OMPI_COMM_WORLD_RANK": "1",
        "PMIX_ID": "2",
        "PRTE_X": "3",
        "MLXDIST_RUN_DIR": "r",
    }
    assert environment.without_mpi({**of_user, **launchers}) == of_user


def test_use_libmpi_keeps_the_users_parameters(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMPI_MCA_btl": "self,sm"})
    environment.use_libmpi("/lib/libmpi.so", parameters={"btl": "^ofi", "x": "1"})
    assert environment.snapshot() == {
        "MLX_MPI_LIBNAME": "/lib/libmpi.so",
        "MLXDIST_FINALIZES": str(os.getpid()),
        "OMPI_MPI_THREAD_LEVEL": "3",
        "OMPI_MCA_btl": "self,sm",
        "OMPI_MCA_x": "1",
    }


@pytest.mark.parametrize(
    ("value", "expected"), [(None, True), ("0", False), ("1", True)]
)
def test_is_enabled_unless_it_is_switched_off(value, expected, monkeypatch):
    monkeypatch.delenv(environment.KEEP_MEMORY, raising=False)
    if value is not None:
        monkeypatch.setenv(environment.KEEP_MEMORY, value)
    assert environment.is_enabled(environment.KEEP_MEMORY) is expected
