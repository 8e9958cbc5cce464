"""How each draw shares out the rows among its components: as probabilities, or drawn once.

Draws times rows times components is a large number, so that shares come in blocks of draws; they
are kept where they are few, and computed anew in every pass where they are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bayesgmm import groups
from bayesgmm.errors import ArgumentError
from bayesgmm.groups import Group
from bayesgmm.moments import Array, Parameters

MOST = 1 << 33  # draws x rows x components: minutes for every pass
_KEPT = 1 << 25  # numbers that are kept
_BLOCK = 1 << 22  # numbers in a block


@dataclass(frozen=True, eq=False)
class Shares:
    """The shares of every draw's components in every row.

    Parameters
    ----------
    draws : sequence of Parameters
    groups : sequence of Group
        The rows, in the units of the draws.
    n : int
        Number of rows.
    seed : int, optional
        Without it shares are the responsibilities. With it they are 0 and 1: one component for
        each row and draw, drawn with its responsibility as probability. Draw s has a generator
        of its own, so that neither blocks nor threads nor the other draws matter.

    Raises
    ------
    ArgumentError
        If there are too many, with the number.
    """

    draws: Sequence[Parameters]
    groups: Sequence[Group]
    n: int
    seed: int | None = None

    def __post_init__(self) -> None:
        s, k = len(self.draws), self.draws[0].k
        if s * self.n * k > MOST:
            raise ArgumentError(
                "method",
                f"looks at draws x rows x components = {s} x {self.n} x {k} = {s * self.n * k:.2g} "
                f"probabilities in every pass, and more than {MOST:.2g} take too long; thin the "
                "draws, fit.isel(draw=slice(None, None, 10), missing_dims='ignore'), or use "
                "'pivot' or 'pra', which need no rows",
            )

    def of(self, s: int) -> Array:
        """Return the shares (n, k) of one draw."""
        draw = self.draws[s]
        probability = groups.rows(self.groups, draw, self.n)[1]
        if self.seed is None:
            return probability[:, : draw.k]
        upto = np.cumsum(probability, axis=1)
        # Below the last sum, so that no rounding chooses a component of probability 0.
        uniform = np.random.default_rng([self.seed, s]).random(self.n) * upto[:, -1]
        chosen = (uniform[:, None] >= upto).sum(axis=1)
        return np.asarray(chosen[:, None] == np.arange(draw.k), dtype=np.float64)  # noise: nowhere

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield some draws at a time, as a slice, and their shares (draw, n, k)."""
        s, each = len(self.draws), self.n * self.draws[0].k
        size = max(1, _BLOCK // each)
        for begin in range(0, s, size):
            part = slice(begin, min(begin + size, s))
            kept = self._kept
            yield part, self._some(part) if kept is None else kept[part]

    @cached_property
    def _kept(self) -> Array | None:
        s = len(self.draws)
        return self._some(slice(0, s)) if s * self.n * self.draws[0].k <= _KEPT else None

    def _some(self, part: slice) -> Array:
        found = np.empty((part.stop - part.start, self.n, self.draws[0].k))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for i, share in enumerate(pool.map(self.of, range(part.start, part.stop))):
                found[i] = share
        return found
