"""The lists of mutations fit today's sources, and the suite catches them."""

import re

import pytest

from tests.mutations.__main__ import is_good, main, summary
from tests.mutations.mutation import Mutation, all_mutations, check_code, source_of
from tests.mutations.runner import Result, whole_files
from tests.support.jobs import ROOT

MUTATIONS = all_mutations()
X = Mutation("optim/step.py", "a", "b", ("tests/optim/test_state.py",))


def test_mutations_have_their_line_in_the_sources():
    problems, sources = [], {}
    for mutation in MUTATIONS:
        if mutation.file not in sources:
            sources[mutation.file] = source_of(mutation)
        try:
            mutation.mutated(sources[mutation.file])
        except ValueError as error:
            problems.append(f"{mutation}: {error}")
        if "\n" in mutation.old[:-1]:
            problems.append(f"{mutation}: old has more than one line")
    assert problems == []


@pytest.mark.parametrize(
    ("new", "error"),
    [("a b", SyntaxError), ("1  # another comment", ValueError), ("1 ", ValueError)],
)
def test_check_code_refuses_what_is_no_mistake(new, error):
    with pytest.raises(error):
        check_code(X._replace(old="1", new=new), "a = 1\n")
    check_code(X._replace(old="1", new="2"), "a = 1\n")


def test_mutations_name_tests_that_exist():
    tests = {test for mutation in MUTATIONS for test in mutation.tests}
    missing = []
    for test in tests:
        file, *names = test.split("::")
        path = ROOT / file
        function = names[-1].split("[")[0] if names else ""
        if not path.exists() or f"def {function}" not in path.read_text():
            missing.append(test)
    assert missing == []


def test_mutations_run_the_tests_that_they_name():
    """Files of tests under mpirun need ranks, and others have no such tests."""
    wrong = []
    for test, ranks in {(t, bool(m.ranks)) for m in MUTATIONS for t in m.tests}:
        text = (ROOT / test.split("::")[0]).read_text()
        all_mpi = re.search(
            r"^pytestmark = (\[\s*)?pytest.mark.mpi", text, re.MULTILINE
        )
        if (all_mpi and not ranks) or ("pytest.mark.mpi" not in text and ranks):
            wrong.append((test, ranks))
    assert wrong == []


def test_mutations_are_listed_once():
    assert len({m[:3] for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("source", ["", "c", "a a"])
def test_mutation_whose_text_is_not_there_once_is_refused(source):
    with pytest.raises(ValueError, match=r"optim/step.py has 'a' \d times, wanted"):
        X.mutated(source)


def test_whole_files_contain_their_tests():
    tests = ["b.py::x", "a.py", "a.py::y", "b.py::z", "a.py"]
    assert whole_files(tests) == ["a.py", "b.py::x", "b.py::z"]


@pytest.mark.parametrize(
    ("caught", "survivors", "explanation", "good"),
    [
        (9, 1, "the same", True),
        (9, 1, "", False),
        (8, 2, "the same", False),
        (10, 0, "", True),
    ],
)
def test_is_good_wants_nine_of_ten_caught_and_the_rest_explained(
    caught, survivors, explanation, good
):
    survivor = Result(X._replace(equivalent=explanation), False, "", 1.0)
    results = [Result(X, True, "", 1.0)] * caught + [survivor] * survivors
    assert is_good(results) == good
    assert f"{caught / 10:.1%}" in summary(results)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_suite_catches_the_mutations():
    assert main([]) == 0
