"""docs/troubleshooting.md: every message of mlxdist that it explains is in the code."""

import ast
import re
from pathlib import Path

import pytest

import mlxdist
from tests.support.jobs import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
OURS = PAGE[: PAGE.index("## Messages of others")]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", OURS, re.MULTILINE)
OF_PYTHON = "'int' object is not callable"


def literal(node):
    """Return the text of a string, with "\\0" for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return "\0"


def texts_of(node):
    """Yield the strings in a tree of code, whole where they consist of several."""
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
        yield literal(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from texts_of(child)


@pytest.fixture(scope="module")
def texts():
    """All strings of the package, with "\1" between them."""
    files = Path(mlxdist.__file__).parent.rglob("*.py")
    trees = (ast.parse(path.read_text()) for path in files)
    return "\1".join(text for tree in trees for text in texts_of(tree))


def is_in(message, texts):
    """Whether one string has the message; "..." stands for any values in it."""
    pattern = "[^\1]*".join(map(re.escape, message.split("...")))
    return re.search(pattern, texts) is not None


def test_messages_of_the_page_are_many():
    assert len(MESSAGES) > 60


@pytest.mark.parametrize("message", [x for x in MESSAGES if x != OF_PYTHON])
def test_message_of_the_page_is_in_the_code(message, texts):
    assert is_in(message, texts)


def test_message_that_no_code_has_is_not_found(texts):
    assert not is_in("call optimizer.init(model) twice", texts)
    assert not is_in("call optimizer...this world is closed", texts)
