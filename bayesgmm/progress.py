"""Whether long work should show how far it is, and how where no bar can be drawn."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

_BETWEEN = 10.0  # seconds between two lines


def is_wanted(progressbar: bool | None) -> bool:
    """Return the user's wish, or by default: in a terminal, but not under CI."""
    if progressbar is not None:
        return progressbar
    return can_draw()


def can_draw() -> bool:
    """Whether a bar can be drawn: in a terminal or a notebook, but not under CI."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ == "ZMQInteractiveShell":
        return True
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


class Lines:
    """Plain lines in place of a bar, one in ten seconds: a callback of nutpie's."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.begin = self.last = time.monotonic()

    def __call__(self, chains: list[Any]) -> None:
        """Write a line if it is time for one."""
        now = time.monotonic()
        if now - self.last < _BETWEEN:
            return
        self.last = now
        done = sum(chain.finished_draws for chain in chains)
        total = sum(chain.total_draws for chain in chains)
        divergent = sum(chain.divergences for chain in chains)
        print(
            f"{self.what}: {done} of {total} draws, {divergent} divergent, "
            f"{now - self.begin:.0f} s",
            file=sys.stderr,
            flush=True,
        )
