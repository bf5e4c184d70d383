"""The rules of the package's structure that no linter checks."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator

import pytest

from tests.support.jobs import ROOT

PACKAGE = ROOT / "mlxdist"
TESTS = ROOT / "tests"
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 45
MAX_MEDIAN_FUNCTION_LINES = 12
MAX_ANY = 111  # half of what there was before the code was split into packages
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def function_lengths() -> dict[str, int]:
    return {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }


def private_imports(tree: ast.Module) -> list[str]:
    """The names with an underscore that a module imports."""
    return [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def foreign_privates(tree: ast.Module) -> list[str]:
    """Uses of `module._name`, for a module that is imported by name."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.name.islower()
    }
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in imported
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
    ]


def changes_of_device(tree: ast.Module) -> list[str]:
    """Calls that change the default device or stream, in all threads or in this one."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in ("mx", "mlx.core")
        and node.attr
        in ("stream", "StreamContext", "set_default_device", "set_default_stream")
    ]


def test_files_are_short():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for folder in (PACKAGE, TESTS)
        for path in folder.rglob("*.py")
    }
    assert {n: k for n, k in lengths.items() if k > MAX_FILE_LINES} == {}


def test_functions_are_short():
    lengths = function_lengths()
    assert {n: k for n, k in lengths.items() if k > MAX_FUNCTION_LINES} == {}
    assert statistics.median(lengths.values()) <= MAX_MEDIAN_FUNCTION_LINES


def test_modules_import_public_names_only():
    assert {n: private_imports(t) for n, t in modules() if private_imports(t)} == {}


def test_modules_use_public_names_of_other_modules_only():
    assert {n: foreign_privates(t) for n, t in modules() if foreign_privates(t)} == {}


def test_modules_leave_the_default_device_to_the_user():
    assert {n: changes_of_device(t) for n, t in modules() if changes_of_device(t)} == {}


def test_types_are_known():
    """`Any` is for what MLX's stubs lack, under the names of arrays/types.py."""
    names = [
        node
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    assert len(names) <= MAX_ANY


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (private_imports, "from ..comm.wire import _Window"),
        (foreign_privates, "from ..optim import state\nstate._joined([])"),
        (changes_of_device, "with mx.stream(mx.cpu):\n    pass"),
        (changes_of_device, "mlx.core.set_default_device(mx.cpu)"),
    ],
)
def test_rules_find_what_breaks_them(rule, source):
    assert rule(ast.parse(source)) != []
