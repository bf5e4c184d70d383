"""Names of mlxdist in the pages: every option has a row, and every attribute exists."""

import inspect
import re

import pytest

import mlxdist
from tests.support.jobs import ROOT
from tests.support.pages import pages

OPTIONS = (ROOT / "docs" / "options.md").read_text()
TABLE = "\n".join(line for line in OPTIONS.splitlines() if line.startswith("| `"))
PARAMETERS = list(inspect.signature(mlxdist.DistributedOptimizer).parameters)[1:]
CLASSES = {
    "mlxdist": mlxdist,
    "optimizer": mlxdist.DistributedOptimizer,
    "sampler": mlxdist.ShardedSampler,
    "world": mlxdist.World,
}
# Attributes that instances alone have, those of the optimizer that is wrapped, a file
# of MLX, and a method of Horovod's.
EXCEPT = {
    *("world.rank", "world.size", "world.host", "world.backend", "world.group"),
    *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.step"),
    *("optimizer.options", "optimizer.optimizer"),
    *("optimizer.safetensors", "optimizer.synchronize"),
}
NAME = re.compile(rf"^({'|'.join(CLASSES)})\.(\w+)\b(?!\.)")


def names():
    """Return names such as world.mean, as they are in the sentences of the pages."""
    spans = [text for page in pages() for text in page.quoted()]
    found = [match[0] for text in spans if (match := NAME.match(text))]
    return sorted(set(found) - EXCEPT)


@pytest.mark.parametrize("name", PARAMETERS)
def test_option_has_a_row(name):
    assert re.search(rf"`{name}=", TABLE)


def test_rows_are_of_options_that_exist():
    first = [line.split(" | ")[0] for line in TABLE.splitlines()]
    named = {name for cell in first for name in re.findall(r"`(\w+)=", cell)}
    assert named == set(PARAMETERS)


@pytest.mark.parametrize("name", names())
def test_name_in_a_sentence_exists(name):
    owner, attribute = name.split(".")
    assert hasattr(CLASSES[owner], attribute)


def test_names_in_sentences_are_many():
    assert len(names()) > 15
