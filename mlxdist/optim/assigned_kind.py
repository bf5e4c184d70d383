"""What state a user has assigned: a full one, or each rank's own shard. Pure.

It may be a full state, in MLX's own layout, or on each rank that rank's own shard, as
`optimizer.state` returned it. Nothing else is taken: with the shard of another rank,
training would go on without a word, with wrong moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from ..comm.agreement import difference, ranks_text
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from .state_exchange import Headers
from .state_layout import COPIES, Specs, cut_shape

Kind = Literal["none", "full", "shard"]
Shapes = dict[KeyPath, dict[str, tuple[int, ...]]]  # {path: {key: shape}}

REMEDY = (
    "Assign the full state on all ranks, or on each rank what its own optimizer.state "
    "was with the same model and number of ranks. Otherwise, after init(model), "
    "optimizer.load_state(full) takes what gather_state() or plain MLX returned, and "
    "mlxdist.load_checkpoint takes a checkpoint of any number of ranks."
)

ASSIGNED_WHILE_TRACING = (
    "a state was assigned, and mx.compile traces already: call optimizer.init(model) "
    "before that, which takes it"
)


class AssignedSummary(NamedTuple):
    """The state that one rank holds.

    Attributes:
        headers: of the parameters' state, with the shapes of this rank's arrays.
        surplus: names in the state that belong to no parameter, and what they are.
        missing: names of the optimizer's own, such as "step", that it lacks.
        foreign: whose shard it is, where that is not this rank.
    """

    headers: Headers
    surplus: Sequence[str]
    missing: Sequence[str]
    foreign: str | None


def kind_of(
    plan: Plan,
    specs: Specs,
    every: Sequence[AssignedSummary],
    known: Mapping[KeyPath, bool],
) -> Kind:
    """Return what the ranks' states are, the same on all ranks.

    A world of one without sharding takes part of a full state, as MLX does.

    Args:
        specs: of all state that the optimizer has.
        every: all ranks' states, by rank.
        known: by path, whether its optimizer makes all its state in `init`.

    Raises:
        ValueError: they are no state of this optimizer; with each rank's first reason.
    """
    is_mlx = len(every) == 1 and not plan.sharded
    has_none = [not rank.headers and not rank.surplus for rank in every]
    if all(has_none):
        missing = [name for rank in every for name in rank.missing]
        if missing and not is_mlx:
            raise ValueError(f"the state has no {missing[0]!r}.\n{REMEDY}")
        return "none"
    specs = {path: specs[path] for path in plan.by_path if path in specs}
    full_wanted = {
        path: {key: spec.shape for key, spec in keys.items()}
        for path, keys in specs.items()
    }
    full = [_problem(r, full_wanted, known, partial=is_mlx) for r in every]
    shard = [
        r.foreign
        or _problem(r, shapes_of_shard(plan, specs, index), known, partial=is_mlx)
        for index, r in enumerate(every)
    ]
    if plan.sharded and not any(shard):
        return "shard"
    fits = [reason is None or none for reason, none in zip(full, has_none, strict=True)]
    if full[0] is None and all(fits):
        return "full"
    raise ValueError(
        "the state that was assigned is neither a full state nor each rank's own "
        f"shard:\n{difference(list(_reasons(plan, full, shard, has_none)))}\n{REMEDY}"
    )


def copy_problem(digests: Sequence[Mapping[str, str]]) -> str | None:
    """Return which rank's shard is that of another rank, or None.

    Args:
        digests: by rank, of each slice that is not constant: `{name: digest}`.
    """
    for rank, mine in enumerate(digests):
        for other in range(rank):
            common = mine.keys() & digests[other].keys()
            if common and all(mine[name] == digests[other][name] for name in common):
                return (
                    f"the state that was assigned on rank {rank} is that of rank "
                    f"{other}: both have the same elements of "
                    f"{', '.join(sorted(common)[:3])}, where each rank has a slice of "
                    f"its own.\n{REMEDY}"
                )
    return None


def shapes_of_shard(plan: Plan, specs: Specs, rank: int) -> Shapes:
    """Return the shapes of a rank's own state; () for numbers that are no arrays."""
    return {
        path: {
            key: cut_shape(spec.cut, stop - start) if spec.cut else spec.shape
            for key, spec in specs[path].items()
        }
        for path, (start, stop) in plan.shard(rank).items()
        if path in specs
    }


def _problem(
    assigned: AssignedSummary,
    wanted: Shapes,
    known: Mapping[KeyPath, bool],
    *,
    partial: bool,
) -> str | None:
    """Return how a rank's state differs from wanted shapes, or None."""
    if not partial:
        if assigned.missing:
            return f"it has no {assigned.missing[0]!r}"
        if assigned.surplus:
            return f"it has {assigned.surplus[0]}"
    for path, keys in assigned.headers.items():
        if path not in wanted and any(key not in COPIES for key in keys):
            return f"it has state of {path}, which is not of this rank's shard"
    differences = _differences(assigned.headers, wanted, known, partial=partial)
    return next(differences, None)


def _differences(
    headers: Headers, wanted: Shapes, known: Mapping[KeyPath, bool], *, partial: bool
) -> Iterator[str]:
    for path, shapes in wanted.items():
        keys = headers.get(path, {})
        if not keys and partial:
            continue
        for key, shape in shapes.items():
            if key not in keys and key not in COPIES:
                yield f"it has no {key} of {path}, wanted {list(shape)}"
            if key in keys and keys[key].shape != shape:
                text = f"{keys[key].dtype}{list(keys[key].shape)}"
                yield f"its {key} of {path} is {text}, wanted {list(shape)}"
        for key in keys.keys() - shapes.keys() - COPIES:
            if known[path]:
                yield f"it has {key} of {path}, which is of another optimizer"


def _reasons(
    plan: Plan,
    full: Sequence[str | None],
    shard: Sequence[str | None],
    has_none: Sequence[bool],
) -> Iterator[str]:
    """Yield what each rank's state is, for an error."""
    for in_full, in_shard, none in zip(full, shard, has_none, strict=True):
        if none:
            yield "no state"
        elif in_full is None:
            yield "a full state"
        elif not plan.sharded or in_full == in_shard:
            yield in_full
        elif in_shard is None:
            yield "this rank's own shard"
        else:
            yield f"as a full state, {in_full}; as this rank's shard, {in_shard}"


def differing_ranks(digests: Sequence[bytes]) -> str:
    """Return which ranks' full states differ from rank 0's, as text."""
    return ranks_text([r for r, digest in enumerate(digests) if digest != digests[0]])
