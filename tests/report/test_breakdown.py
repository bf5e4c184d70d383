"""The parts of the ranks' time, which add up to all of it."""

import random

import pytest

from mlxdist.report.breakdown import break_down
from mlxdist.report.run_files import Run
from mlxdist.report.sections import figures, time
from mlxdist.report.words import duration, sentences
from tests.support.traces import rank_trace


def parts_of(*ranks):
    return [dict(rank.parts) for rank in break_down(ranks).ranks]


def test_parts_of_one_rank():
    rank = rank_trace(
        calls=[(2, 5), (6, 9)],
        phases=[(4, 5), (8, 9)],
        waits=[(3, 3.5), (8.5, 9.5)],
        collectives=[(1, 1, 4), (2, 8, 10)],
        overlaps=True,
    )
    (found,) = break_down([rank]).ranks
    assert found.parts == {
        "computing": 5.0,
        "updating": 1.5,
        "wire": 1.5,
        "waiting": 0,
        "other": 2,
    }
    assert found.before_first_step == 2
    assert found.overlapped == 1.5 + 1


def test_time_in_which_two_collectives_are_under_way_counts_once():
    collectives = [(1, 1, 8), (2, 2, 3), (3, 9, 10)]
    options = {"collectives": collectives, "waits": [(7, 9.5)]}
    for overlaps, expected in ((True, 6.5), (False, 0)):
        rank = rank_trace(calls=[(0, 10)], overlaps=overlaps, **options)
        (found,) = break_down([rank]).ranks
        assert found.overlapped == expected


def test_calls_that_are_no_steps_are_other():
    rank = rank_trace(calls=[(1, 2), (3, 5, "save_checkpoint"), (6, 7)])
    (parts,) = parts_of(rank)
    assert (parts["other"], parts["computing"]) == (3, 7)


def test_waits_before_the_first_step_are_other():
    (parts,) = parts_of(rank_trace(calls=[(4, 6)], waits=[(1, 2), (3.5, 5)]))
    assert (parts["other"], parts["wire"], parts["computing"]) == (4, 1, 5)


def test_rank_without_a_step_computes_or_waits():
    (parts,) = parts_of(rank_trace(waits=[(1, 2)]))
    assert (parts["computing"], parts["wire"], parts["other"]) == (9, 1, 0)


def test_straggler_is_the_rank_for_which_others_wait_longest():
    steps = [(0, 5), (5, 10)]
    first = rank_trace(0, calls=steps, waits=[(1, 3, 1), (6, 8, 2)])
    second = rank_trace(1, calls=steps, waits=[(2, 3, 1), (7, 8, 2)])
    third = rank_trace(2, calls=steps, waits=[(0, 10, 1)])
    found = break_down([first, second, third])
    assert (found.steps, found.step_time) == (2, 5)
    straggler = found.straggler
    assert (straggler.rank, straggler.is_noticeable) == (1, True)
    # Rank 0 waits for it for 2 s, and rank 2 for 8 s: none of both is the other's.
    late = [dict(rank.late) for rank in found.ranks]
    assert late[0] == {1: 2.0}
    assert late[2][1] + late[2][0] == 8.0
    per_step = (late[0][1] + late[2][1]) / 2 / 2
    assert straggler.per_step == pytest.approx(per_step)


def test_trace_without_a_killed_rank_names_no_straggler():
    ranks = [
        rank_trace(rank, size=3, calls=[(0, 10)], waits=[(1 + rank, 9)])
        for rank in (0, 2)
    ]
    found = break_down(ranks)
    assert (found.straggler.rank, found.lost) == (2, 1)
    assert ">2 of 3<" in figures(Run("x", breakdown=found))
    text = " ".join(sentences(found))
    assert "Of 3 ranks only these are in the trace: 0, 2." in text
    assert "is waited for longest" not in text


def test_ranks_waited_for_longest_come_first_and_a_trace_that_is_cut_is_named():
    found = break_down(
        [
            rank_trace(0, calls=[(0, 10)], waits=[(1, 10)]),
            rank_trace(1, calls=[(0, 10)], waits=[(0, 4)], is_complete=False),
            rank_trace(2, calls=[(0, 10)], waits=[(0, 10)]),
        ]
    )
    assert "rank 1: 6 s, rank 0: 1 s" in time(found)
    assert "the end of these ranks: 1. A job" in " ".join(sentences(found))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(150, "2.5 min"), (119, "119 s"), (0.0125, "12.5 ms"), (2e-6, "2 µs")],
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert duration(seconds) == text


def random_rank(rank, generator):
    """A rank with calls, phases, waits and collectives anywhere."""

    def pairs(count):
        times = sorted(generator.uniform(-1, 11) for _ in range(2 * count))
        return list(zip(times[::2], times[1::2], strict=True))

    calls, waits = pairs(generator.randrange(6)), pairs(generator.randrange(8))
    collectives = [
        (n, a, None if generator.random() < 0.2 else b)
        for n, (a, b) in enumerate(pairs(5))
    ]
    return rank_trace(
        rank,
        calls=calls,
        phases=[((a + b) / 2, b) for a, b in calls],
        waits=waits,
        collectives=collectives,
        overlaps=generator.random() < 0.5,
    )


def test_parts_add_up_to_the_time_whatever_overlaps():
    generator = random.Random(5)
    for _ in range(60):
        ranks = [random_rank(rank, generator) for rank in range(3)]
        found = break_down(ranks)
        for rank in found.ranks:
            assert sum(rank.parts.values()) == pytest.approx(rank.wall, abs=1e-9)
            assert min(rank.parts.values()) >= 0
            assert sum(rank.late.values()) == pytest.approx(rank.parts["waiting"])
        assert sum(found.parts.values()) == pytest.approx(found.wall)
