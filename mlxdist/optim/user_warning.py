"""Warnings that point to the user's line, and never raise."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


def warn_user(text: str) -> None:
    """Warn at the innermost line outside of mlxdist.

    Where a filter makes errors of warnings (`python -W error`) it is printed: an error
    on this rank alone would leave the others waiting.
    """
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    try:
        warnings.warn(text, stacklevel=level)
    except UserWarning:
        print(f"mlxdist: {text}", file=sys.stderr)
