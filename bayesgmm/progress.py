"""Whether long work should show how far it is."""

from __future__ import annotations

import os
import sys


def is_wanted(progressbar: bool | None) -> bool:
    """Return the user's wish, or by default: in a terminal, but not under CI."""
    if progressbar is not None:
        return progressbar
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
