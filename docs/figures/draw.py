"""Draws the figures of docs/concepts.md: what a rank has, and what travels.

    python docs/figures/draw.py

Each figure has a ground of its own, so that it is readable on light and dark pages.
Widths are those of the quickest reading: 24 units are 12 pixels on a telephone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
WIDTH = 760
RANK_X = (214, 492)  # where the columns of rank 0 and rank 1 begin
TENSORS = (70, 106, 72)  # widths of three parameters
BAR, GAP = 34, 16  # height of a row, and between rows
STYLE = """\
    text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 24px; fill: #1f2328; }
    .page { fill: #ffffff; }
    .rank { font-weight: 600; text-anchor: middle; }
    .wire { text-anchor: middle; }
    .note { font-size: 22px; fill: #59636e; text-anchor: middle; }
    .p { fill: #8c959f; } .a { fill: #54aeff; } .b { fill: #ffb77c; } .m { fill: #4ac26b; } .s { fill: #c297ff; }
    .none { fill: none; stroke: #afb8c1; stroke-width: 2; stroke-dasharray: 6 5; }
    .line { fill: none; stroke: #59636e; stroke-width: 3; }
    .head { fill: #59636e; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .page { fill: #0d1117; }
      .note { fill: #b7bdc8; }
      .p { fill: #6e7681; } .a { fill: #388bfd; } .b { fill: #db6d28; } .m { fill: #2ea043; } .s { fill: #8957e5; }
      .none { stroke: #656c76; }
      .line { stroke: #9198a1; }
      .head { fill: #9198a1; }
    }
"""  # noqa: E501


class Row(NamedTuple):
    """A row of a figure: the parts of the model that each rank has.

    `parts` is, for each rank, (class, begin, end) as shares of the row's width; what is
    in no part is drawn as absent.
    """

    label: str
    parts: tuple[Sequence[tuple[str, float, float]], ...]


FLAT = sum(TENSORS)
EDGES = (0, TENSORS[0] / FLAT, (TENSORS[0] + TENSORS[1]) / FLAT, 1)


def whole(*classes: str) -> tuple[list[tuple[str, float, float]], ...]:
    """All of the model on each rank, in the class of each."""
    return tuple([(name, 0.0, 1.0)] for name in classes)


def halves(name: str) -> tuple[list[tuple[str, float, float]], ...]:
    """Equal slices of all elements, one for each rank."""
    return [(name, 0.0, 0.5)], [(name, 0.5, 1.0)]


def owned(name: str) -> tuple[list[tuple[str, float, float]], ...]:
    """The first and the last tensor on rank 0, the second on rank 1."""
    return (
        [(name, EDGES[0], EDGES[1]), (name, EDGES[2], EDGES[3])],
        [(name, EDGES[1], EDGES[2])],
    )


PARAMETERS = Row("parameters", whole("p", "p"))
GRADIENTS = Row("gradients", whole("a", "b"))
FIGURES = {
    "replicated": (
        "Replicated: every rank has everything",
        [
            PARAMETERS,
            GRADIENTS,
            Row("means", whole("m", "m")),
            Row("state: m", whole("s", "s")),
            Row("state: v", whole("s", "s")),
        ],
    ),
    "elements": (
        "Sharded by elements: equal slices, across tensors",
        [
            PARAMETERS,
            GRADIENTS,
            Row("means", halves("m")),
            Row("state: m", halves("s")),
            Row("state: v", halves("s")),
        ],
    ),
    "tensors": (
        "Sharded by tensors: each has one owner",
        [
            PARAMETERS,
            GRADIENTS,
            Row("means", owned("m")),
            Row("state", owned("s")),
        ],
    ),
    "minimize": (
        "minimize: gradients leave as they are made",
        [
            PARAMETERS,
            Row(
                "gradients",
                ([("a", EDGES[1], EDGES[2])], [("b", EDGES[1], EDGES[2])]),
            ),
            Row("means", halves("m")),
            Row("state: m", halves("s")),
            Row("state: v", halves("s")),
        ],
    ),
}


def bar(left: float, top: float, parts: Sequence[tuple[str, float, float]]) -> str:
    """Return a row of one rank: what it has, cut where tensors end, and the rest."""
    lines = [
        f'<rect class="none" x="{left}" y="{top}" width="{FLAT - 3}" height="{BAR}"/>'
    ]
    for name, begin, end in parts:
        cuts = [begin, *(edge for edge in EDGES if begin < edge < end), end]
        for first, last in itertools.pairwise(cuts):
            x, width = left + first * FLAT, (last - first) * FLAT - 3
            lines.append(
                f'<rect class="{name}" x="{x:g}" y="{top}" '
                f'width="{width:g}" height="{BAR}"/>'
            )
    return "\n  ".join(lines)


def text(kind: str, x: float, y: float, words: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def svg(title: str, height: int, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'role="img" aria-labelledby="title">',
            f'  <title id="title">{title}</title>',
            f"  <style>\n{STYLE}  </style>",
            f'  <rect class="page" width="{WIDTH}" height="{height}" rx="12"/>',
            *(f"  {line}" for line in body),
            "</svg>\n",
        ]
    )


def what_a_rank_has(title: str, rows: Sequence[Row]) -> str:
    """Return a figure with a column for each of two ranks and a row for each kind."""
    body = [
        text("rank", left + FLAT / 2, 40, f"rank {rank}")
        for rank, left in enumerate(RANK_X)
    ]
    for index, row in enumerate(rows):
        top = 60 + index * (BAR + GAP)
        body.append(text("label", 20, top + 26, row.label))
        body += [
            bar(left, top, parts) for left, parts in zip(RANK_X, row.parts, strict=True)
        ]
    return svg(title, 60 + len(rows) * (BAR + GAP) + 8, body)


def what_travels() -> str:
    """Return the figure of a sharded step: slices of gradients, then of parameters."""
    head = (
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" '
        'markerWidth="5" markerHeight="5" orient="auto">'
        '<path class="head" d="M0 0 10 5 0 10z"/></marker></defs>'
    )
    body = [head, text("rank", 120, 40, "rank 0"), text("rank", 640, 40, "rank 1")]
    steps = (
        ("1  reduce-scatter", "gradients of the other's slice, P/2", "a", "b"),
        ("2  each steps its slice", "", "m", "m"),
        ("3  all-gather", "new parameters of its own slice, P/2", "p", "p"),
    )
    for index, (name, note, first, second) in enumerate(steps):
        top = 70 + index * 120
        # In 1 a rank sends the other's slice, in 2 and 3 it has its own.
        swapped = index == 0
        for left, kind, is_second in ((20, first, swapped), (540, second, not swapped)):
            parts = [(kind, 0.5 if is_second else 0.0, 1.0 if is_second else 0.5)]
            body.append(
                f'<g transform="translate({left} {top}) scale({200 / FLAT:.4f} 1)">'
                f"{bar(0, 0, parts)}</g>"
            )
        body.append(text("wire", 380, top + (4 if note else 26), name))
        if note:
            body.append(
                f'<path class="line" marker-end="url(#arrow)" d="M236 {top + 17}H524"/>'
            )
            body.append(
                f'<path class="line" marker-end="url(#arrow)" d="M524 {top + 33}H236"/>'
            )
            body.append(text("note", 380, top + 64, note))
    return svg("What travels in a sharded step on two ranks", 400, body)


def figures() -> dict[str, str]:
    """Return all figures, by the names of their files."""
    drawn = {
        f"{name}.svg": what_a_rank_has(title, rows)
        for name, (title, rows) in FIGURES.items()
    }
    return {**drawn, "wire.svg": what_travels()}


if __name__ == "__main__":
    for name, content in figures().items():
        (FOLDER / name).write_text(content)
