"""Draws the plan of each job from a seed: pure, so that any job can be run again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from .kinds import Effect, Kind
from .plan import VARIANTS, Configuration, Fault, Plan

STEPS = 18
_SAVED_BY = 7  # a step before which there are at least two checkpoints
_LIMIT = 40.0  # seconds of a start, where nothing else ends it


def draw_plan(seed: int, number: int, kinds: Mapping[str, Kind]) -> Plan:
    """Return the plan of a job. Each kind leads one of so many jobs as there are kinds.

    Args:
        number: of the job in its run, from 0.
        kinds: those of this machine, by name.
    """
    names = sorted(kinds)
    random.Random(f"{seed}, round {number // len(names)}").shuffle(names)
    lead = names[number % len(names)]
    draw = random.Random(f"{seed}, job {number}")
    plan = _draw_setting(draw, number, kinds[lead])
    faults = _first_faults(draw, plan, lead, kinds)
    while _ends_attempt(faults, kinds) and faults[-1].attempt < plan.max_restarts:
        name = draw.choice(_possible(kinds, plan))
        attempt = faults[-1].attempt + 1
        faults.append(_draw_fault(draw, plan, name, kinds[name], attempt))
    needs_limit = any(kinds[fault.kind].needs_limit for fault in faults)
    limit = _LIMIT if needs_limit else 0.0
    return replace(plan, faults=tuple(faults), time_limit=limit)


def _ends_attempt(faults: list[Fault], kinds: Mapping[str, Kind]) -> bool:
    """Return whether the last attempt that has faults is followed by another one."""
    last = [x for x in faults if x.attempt == faults[-1].attempt]
    return any(kinds[x.kind].effect in (Effect.ENDS, Effect.MAY_END) for x in last)


def _draw_setting(draw: random.Random, number: int, lead: Kind) -> Plan:
    hosts = draw.randint(2, 4) if lead.needs_hosts or draw.random() < 0.4 else 1
    ranks = draw.randint(2, 4) if hosts == 1 else hosts
    if hosts == 2 and draw.random() < 0.5:
        ranks = 4  # two on each host
    own_disks = lead.needs_disks or draw.random() < 0.4
    tolerates = own_disks and draw.random() < 0.5
    return Plan(
        number,
        Configuration(draw.choice(VARIANTS), ranks, STEPS),
        hosts,
        max_restarts=draw.choice([1, 2] if lead.needs_restart else [0, 1, 1, 2, 3]),
        own_disks=own_disks,
        save_every=draw.randint(2, 4),
        background=not tolerates and draw.random() < 0.6,
        tolerates=tolerates,
    )


def _first_faults(
    draw: random.Random, plan: Plan, lead: str, kinds: Mapping[str, Kind]
) -> list[Fault]:
    """Return the faults up to the attempt of the one that leads."""
    if kinds[lead].needs_restart:
        ends = [x for x in _possible(kinds, plan) if kinds[x].effect is Effect.ENDS]
        name = draw.choice([x for x in ends if not kinds[x].at_start])
        first = _draw_fault(draw, plan, name, kinds[name], 0)
        step = draw.randint(max(_SAVED_BY, 2 * plan.save_every), STEPS - 4)
        second = _draw_fault(draw, plan, lead, kinds[lead], 1)
        return [replace(first, step=step), second]
    faults = [_draw_fault(draw, plan, lead, kinds[lead], 0)]
    if draw.random() < 0.3:
        possible = _possible(kinds, plan)
        name = draw.choice([x for x in possible if kinds[x].effect is Effect.NONE])
        faults.append(_draw_fault(draw, plan, name, kinds[name], 0))
    return faults


def _possible(kinds: Mapping[str, Kind], plan: Plan) -> list[str]:
    return [
        name
        for name in sorted(kinds)
        if not kinds[name].needs_restart
        and (plan.hosts > 1 or not kinds[name].needs_hosts)
        and (plan.own_disks or not kinds[name].needs_disks)
    ]


def _draw_fault(
    draw: random.Random, plan: Plan, name: str, kind: Kind, attempt: int
) -> Fault:
    return Fault(
        name,
        attempt,
        step=0 if kind.at_start else draw.randint(1, STEPS - 4),
        rank=draw.randrange(plan.configuration.ranks),
        delay=round(draw.uniform(0, 0.2), 3),
        seconds=round(draw.uniform(0.3, 1) * kind.longest, 2),
        host=draw.randrange(1, plan.hosts) if kind.needs_hosts else 0,
    )
