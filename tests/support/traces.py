"""Traces of made-up ranks, with round times, for tests of what reads them."""

from mlxdist.report.trace import Collective, Interval, RankTrace


def rank_trace(
    rank=0,
    *,
    size=1,
    end=10.0,
    calls=(),
    phases=(),
    waits=(),
    collectives=(),
    overlaps=False,
    is_complete=True,
):
    """Return a rank's trace from 0 to `end`.

    Args:
        calls: (start, end) of steps, or (start, end, name).
        phases: (start, end) of updates.
        waits: (start, end) or (start, end, step).
        collectives: (sequence, start, end).
    """

    def call(step, start, end, name="optimizer 1.update"):
        return Interval(start, end, name, step)

    def wait(start, end, step=1):
        return Interval(start, end, "waiting", step)

    update = "optimizer and parameter exchange"
    return RankTrace(
        rank=rank,
        size=size,
        host=f"h{rank}",
        start=0.0,
        end=end,
        clock_error=0.0,
        overlaps=overlaps,
        is_complete=is_complete,
        calls=[call(step, *each) for step, each in enumerate(calls, 1)],
        phases=[Interval(*each, update, 0) for each in phases],
        waits=[wait(*each) for each in waits],
        collectives=[Collective(*each) for each in collectives],
    )


def chrome_events(rank=0, *events, size=2):
    """Return a rank's events in Chrome's format, of a job of 10 seconds.

    Args:
        events: what is added to those that name the rank.
    """
    args = {"rank": rank, "size": size, "host": f"h{rank}", "start": 0.0, "end": 1e7}
    args |= {"clock_error": 0.0, "overlaps": False, "is_complete": True}
    name = {"name": "process_name", "ph": "M", "pid": rank, "args": args}
    return [name, *({"pid": rank, "tid": 0, "ts": 0.0, **event} for event in events)]
