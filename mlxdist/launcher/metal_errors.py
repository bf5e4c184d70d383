"""What errors of Metal's command buffers mean, and what to do about them.

MLX passes on Metal's text: "[METAL] Command buffer execution failed: Impacting
Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)". Texts
are from public reports: MLX #3267 (interactivity) and #479 (memory), and
flutter/flutter #97910, #127151 (timeout, hang, ignored submissions).

Standard library only: `mlxdist run` and the post-mortem use it.
"""

from __future__ import annotations

import re

PREFIX = "kIOGPUCommandBufferCallbackError"  # of all codes
PAGE = "docs/night_runs.md"
_CODE = re.compile(PREFIX + r"(\w+)")

# By the code's last part. The first of these that a job reports is its cause: Metal
# ignores what a process submits after an error, and so the last one never is.
MEANINGS = {
    "ImpactingInteractivity": (
        "macOS ended its work on the GPU, because the display had to wait for it: let "
        "the display sleep and keep the Mac awake with caffeinate -is"
    ),
    "Timeout": (
        "its GPU took or waited for longer than macOS allows, about 5 s: look for a "
        "rank that is late, or evaluate less at once"
    ),
    "Hang": (
        "its GPU made no progress, and macOS reset it: look for a rank that is late, "
        "or evaluate less at once"
    ),
    "OutOfMemory": (
        "the Mac's GPU ran out of memory: take a smaller batch, checkpoint activations "
        "or call mx.set_cache_limit"
    ),
    "SubmissionsIgnored": (
        "Metal ignored its work after earlier errors of the GPU: restart the program"
    ),
}


def explain(text: str) -> str:
    """Return the cause and the remedy of an error of Metal; "" if the text has none."""
    codes = _CODE.findall(text)
    known = [code for code in MEANINGS if code in codes]
    return f"{MEANINGS[known[0]]}; see {PAGE}" if known else ""
