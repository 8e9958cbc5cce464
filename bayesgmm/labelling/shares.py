"""How each draw shares out the rows among its components: as probabilities, or drawn once.

Draws times rows times components is a large number, so that shares come in blocks of draws; they
are kept where they are few, and computed anew in every pass where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bayesgmm.allocation.drawn import NUMBERS, Drawn, Labels
from bayesgmm.errors import ArgumentError
from bayesgmm.moments import Array

MOST = 1 << 33  # draws x rows x components: minutes for every pass
_KEPT = 1 << 25  # numbers that are kept


@dataclass(frozen=True, eq=False)
class Shares:
    """The shares of every draw's components in every row.

    Parameters
    ----------
    drawn : Drawn
        Draws and rows.
    k : int
        Number of components; noise, which comes after them, has no share.
    seed : int, optional
        Without it shares are the responsibilities. With it they are 0 and 1: one component for
        each row and draw, drawn with its responsibility as probability.

    Raises
    ------
    ArgumentError
        If there are too many, with the number.
    """

    drawn: Drawn
    k: int
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.s * self.n * self.k > MOST:
            size = f"{self.s} x {self.n} x {self.k} = {self.s * self.n * self.k:.2g}"
            raise ArgumentError(
                "method",
                f"looks at draws x rows x components = {size} probabilities in every pass, and "
                f"more than {MOST:.2g} take too long; thin the draws, fit.isel(draw=slice(None, "
                "None, 10), missing_dims='ignore'), or use 'pivot' or 'pra', which need no rows",
            )

    @property
    def s(self) -> int:
        """Number of draws."""
        return self.drawn.s

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.drawn.n

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield some draws at a time, as a slice, and their shares (draw, n, k)."""
        if self._kept is not None:
            yield slice(0, self.s), self._kept
        else:
            yield from self._computed()

    @cached_property
    def _kept(self) -> Array | None:
        if self.s * self.n * self.k > _KEPT:
            return None
        return np.concatenate([share for _, share in self._computed()])

    def _computed(self) -> Iterator[tuple[slice, Array]]:
        begin = 0
        for share in self._probabilities() if self.seed is None else self._allocations():
            yield slice(begin, begin + len(share)), share
            begin += len(share)

    def _probabilities(self) -> Iterator[Array]:
        for r in self.drawn.responsibilities():
            yield np.ascontiguousarray(np.moveaxis(r, 1, 0)[..., : self.k])

    def _allocations(self) -> Iterator[Array]:
        step = max(1, NUMBERS // (self.n * self.k))
        for begin in range(0, self.s, step):
            chosen = self._chosen[:, begin : begin + step].T
            yield np.asarray(chosen[..., None] == np.arange(self.k), dtype=np.float64)

    @cached_property
    def _chosen(self) -> Labels:
        """Components (n, s): 2 bytes for each row and draw."""
        return self.drawn.sample(np.random.default_rng(self.seed))
