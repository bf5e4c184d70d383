"""One HTML page of a run: no script, nothing from elsewhere, light and dark."""

from __future__ import annotations

from pathlib import Path

from ..launcher.private_files import write_atomically
from . import sections
from .markup import Markup, element, join
from .run_files import Run

# Nothing is loaded, even if something of the run were taken for markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

# Colors that people with any color vision tell apart (Okabe and Ito), darker on a light
# page so that lines of them have a contrast of 3:1.
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1c1c1e; --soft: #5f6368;
  --rule: #dcdfe3; --panel: #f5f6f8; --c0: #0060a0; --c1: #b24a00; --c2: #00735a;
  --c3: #8a3b73; --c4: #7a7d83; --good: #006b4f; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --text: #e8eaed;
  --soft: #a9aeb5; --rule: #3a3e45; --panel: #202329; --c0: #62b5ec; --c1: #f0a35b;
  --c2: #41c9a3; --c3: #dd9ac8; --c4: #80858d; --good: #5bd3ab; --bad: #ff8a80;
  --warn: #f0c25b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1160px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 8px 0 16px; }
h2 { font-size: 1.15rem; margin: 32px 0 8px; }
p { margin: 6px 0; max-width: 75ch; }
.note { color: var(--soft); font-size: .87rem; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
.warn { color: var(--warn); font-weight: 600; }
.banner { border-left: 4px solid var(--bad); background: var(--panel);
  padding: 8px 12px; max-width: none; }
.figures { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; }
.figures div { background: var(--panel); border-radius: 6px; padding: 8px 14px;
  flex: 1 1 130px; }
.figures dt { color: var(--soft); font-size: .82rem; }
.figures dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 20px 28px; margin-top: 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.charts > p { grid-column: 1 / -1; }
figure { margin: 0; max-width: 600px; } figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; max-width: 600px; overflow: visible; }
svg text { fill: var(--text); font-size: 12px; }
svg path { fill: none; stroke: var(--rule); }
svg .axis, svg .tick { stroke: var(--soft); }
svg .s0, svg .s1, svg .s2, svg .s3 { stroke-width: 1.8; }
svg .s0 { stroke: var(--c0); } svg .s1 { stroke: var(--c1); }
svg .s2 { stroke: var(--c2); } svg .s3 { stroke: var(--c3); }
svg .b0, svg .b1, svg .b2, svg .b3 { opacity: .35; }
svg .b0 { stroke: var(--c0); } svg .b1 { stroke: var(--c1); }
svg .b2 { stroke: var(--c2); } svg .b3 { stroke: var(--c3); }
svg .b0, svg .d0 { fill: var(--c0); } svg .b1, svg .d1 { fill: var(--c1); }
svg .b2, svg .d2 { fill: var(--c2); } svg .b3, svg .d3 { fill: var(--c3); }
svg rect { stroke: var(--page); }
.computing { fill: var(--c0); background: var(--c0); }
.updating { fill: var(--c2); background: var(--c2); }
.wire { fill: var(--c3); background: var(--c3); }
.waiting { fill: var(--c1); background: var(--c1); }
.other { fill: var(--c4); background: var(--c4); }
.k0 { background: var(--c0); } .k1 { background: var(--c1); }
.k2 { background: var(--c2); } .k3 { background: var(--c3); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0;
  margin: 6px 0; font-size: .87rem; color: var(--soft); }
.key { display: inline-block; width: 10px; height: 10px; margin-right: 6px;
  border-radius: 2px; }
.wide { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { text-align: left; padding: 4px 14px 4px 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.short { white-space: nowrap; }
.wide td { min-width: 18ch; } .wide td.short { min-width: 0; }
.facts th { white-space: normal; }
.facts th, .facts td { overflow-wrap: anywhere; min-width: 12ch; }
footer { margin-top: 40px; color: var(--soft); font-size: .82rem; }
"""


def page_of(run: Run) -> str:
    """Return the page of a run, as HTML."""
    return document(
        f"{run.name}, a run of mlxdist",
        element("h1", run.name),
        _banner(run),
        sections.figures(run),
        sections.charts(run.metrics),
        sections.time(run.breakdown),
        sections.outcome(run),
        sections.config(run),
        sections.missing(run),
    )


def document(title: str, *contents: Markup) -> str:
    """Return a page of these contents, as HTML."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(_STYLE)),
    ]
    main = element("main", join(contents))
    footer = element("footer", "Written by mlxdist report.")
    html = element(
        "html", element("head", *head), element("body", main, footer), lang="en"
    )
    return f"<!doctype html>\n{html}\n"


def write_page(run: Run, path: Path | str) -> None:
    """Write the page of a run, whole or not at all, readable by this user alone.

    Raises:
        OSError: it can't be written.
    """
    write_atomically(Path(path), page_of(run))


def _banner(run: Run) -> Markup:
    """What a reader must see first: that the job failed, or was ended."""
    code = None if run.outcome is None else run.outcome.get("exit_code")
    if run.outcome is None or code in (0, None):
        return Markup("")
    message = str(run.outcome.get("message") or f"exit code {code}")
    was_ended = message.startswith("ended ")  # by a signal or a time limit
    title = "The job was" if was_ended else "The job failed:"
    return element("p", f"{title} {message}", cls="banner")
