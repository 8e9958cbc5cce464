"""Rows that may not fit into memory: arrays on disk, and passes over rows in blocks.

An array "on disk" is a memory-mapped file without a name, in the folder for temporary files
(``TMPDIR``), which is gone when nothing refers to the array any more.  The operating system reads
and writes its pages as they are needed.  To NumPy and to the pass over the data it is an array like
any other, so that there is one code and the same bits for both; what follows from rows on disk and
is as long as they are is put on disk as well (`room_like`).
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bayesgmm.errors import StorageError

Array = NDArray[np.float64]
ROWS = 1 << 14  # of a block
_NUMBER = 8  # bytes


def is_on_disk(array: Array) -> bool:
    """Whether the numbers of an array are in a file."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    return isinstance(base, mmap)


def room(*shape: int, on_disk: bool = False) -> Array:
    """Return an array of doubles, to be filled.

    Raises
    ------
    StorageError
        If there is no room on disk.
    """
    if not on_disk:
        return np.empty(shape)
    with scratch() as file:
        reserve(file, _NUMBER * math.prod(shape))
        return mapped(file, shape)


def room_like(x: Array, *shape: int) -> Array:
    """Return an array of doubles, to be filled: on disk if ``x`` is."""
    return room(*shape, on_disk=is_on_disk(x))


def scratch() -> BinaryIO:
    """Open a file that has no name, or is removed when it is closed."""
    try:
        return tempfile.TemporaryFile(prefix="bayesgmm-")
    except OSError as error:
        raise _no_room(error.strerror) from error


def reserve(file: BinaryIO, size: int) -> None:
    """Make a file ``size`` bytes long, which cannot fail later for want of room.

    A page that has no room when it is written to would end the process.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        elif size > shutil.disk_usage(tempfile.gettempdir()).free:
            raise OSError(0, "no space left on device")
        else:
            file.truncate(max(size, 1))
    except OSError as error:
        raise _no_room(f"{error.strerror} for {size / 1e9:.3g} GB") from error


def append(file: BinaryIO, numbers: Array) -> None:
    """Write numbers at the end of a file."""
    try:
        numbers.tofile(file)
    except OSError as error:  # NumPy's own says how many it has written
        raise _no_room(f"no room for {numbers.nbytes / 1e9:.3g} GB more") from error


def mapped(file: BinaryIO, shape: tuple[int, ...]) -> Array:
    """Return the numbers in a file as an array, C-contiguous."""
    file.flush()
    return np.ndarray(shape, np.float64, mmap(file.fileno(), _NUMBER * math.prod(shape)))


def _no_room(why: str | None) -> StorageError:
    return StorageError(
        f"the folder for temporary files, {tempfile.gettempdir()}, cannot hold the data ({why}); "
        "name one that can by the environment variable TMPDIR"
    )


# Passes


def blocks(n: int, size: int = ROWS) -> Iterator[slice]:
    """Yield n rows as slices."""
    for begin in range(0, n, size):
        yield slice(begin, min(begin + size, n))


def has_nan(x: Array) -> bool:
    """Whether any number is NaN, without an array of answers."""
    return bool(x.size) and bool(np.isnan(np.min(x)))


def is_finite(x: Array) -> bool:
    """Whether all numbers are finite, without an array of answers."""
    return not x.size or bool(np.isfinite(np.min(x)) and np.isfinite(np.max(x)))


def row_by_row(function: Callable[[Array], Array], x: Array) -> Array:
    """Return what a function makes of rows (m, d), (m, ...), for all rows (n, d)."""
    out: Array | None = None
    for part in blocks(len(x)):
        found = function(x[part])
        if out is None:
            out = room_like(x, len(x), *found.shape[1:])
        out[part] = found
    return function(x) if out is None else out


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of positive weight, in blocks; of these the complete ones, if wanted.

    Parameters
    ----------
    x : (n, d) array
        NaN where missing.
    weight : (n,) array
        Frequencies, or shape (0,) when all are one.
    complete : bool
    """

    x: Array
    weight: Array
    complete: bool = False

    def __iter__(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield rows (m, d), column after column in memory, and weights (m,) or None.

        Sums down a column are faster so, and rounded less.
        """
        for part, weight, _ in self.placed():
            yield part, weight

    def placed(self) -> Iterator[tuple[Array, Array | None, NDArray[np.intp]]]:
        """Yield the blocks, with the places of their rows among all."""
        is_weighted = self.weight.size > 0
        for part in blocks(len(self.x)):
            x, w = self.x[part], self.weight[part] if is_weighted else None
            kept = np.ones(len(x), dtype=bool) if w is None else w > 0
            if self.complete:
                kept &= ~np.isnan(x).any(axis=1)
            place = np.flatnonzero(kept)
            if len(place) < len(x):
                x, w = x[place], w if w is None else w[place]
            if len(place):
                yield np.asfortranarray(x), w, place + part.start

    def column(self, j: int) -> tuple[Array, Array | None]:
        """Return what is observed in a column, contiguous, and weights or None."""
        column, weight = room_like(self.x, len(self.x)), np.empty(0)
        if self.weight.size:
            weight = room_like(self.x, len(self.x))
        m = 0
        for part, w in self:
            there = ~np.isnan(part[:, j])
            end = m + int(np.count_nonzero(there))
            column[m:end] = part[there, j]
            if w is not None:
                weight[m:end] = w[there]
            m = end
        return column[:m], weight[:m] if self.weight.size else None

    def extremes(self) -> tuple[Array, Array]:
        """Return the smallest and largest number of each column, (d,) each."""
        low = high = np.full(self.x.shape[1], np.nan)
        for part, _ in self:
            low = np.fmin(low, np.fmin.reduce(part, axis=0))
            high = np.fmax(high, np.fmax.reduce(part, axis=0))
        return low, high

    def count(self) -> tuple[int, float]:
        """Return how many rows there are, and their total weight."""
        if not self.complete:
            if not self.weight.size:
                return len(self.x), float(len(self.x))
            return int(np.count_nonzero(self.weight > 0)), float(self.weight.sum())
        each = [(len(x), float(len(x) if w is None else w.sum())) for x, w in self]
        return sum(m for m, _ in each), math.fsum(total for _, total in each)

    def observed(self) -> Array:
        """Return the total weight of what is observed in each column, (d,)."""
        total = np.zeros(self.x.shape[1])
        for part, w in self:
            there = ~np.isnan(part)
            total += there.sum(axis=0) if w is None else w @ there
        return total

    def means(self, function: Callable[[Array], Array]) -> Array:
        """Return the weighted means (d,) of what a function makes of the rows, NaN left out.

        Of a column with nothing else it is 0.
        """
        observed = self.observed()
        observed[observed == 0] = 1.0
        total = np.zeros(len(observed))
        for part, w in self:
            found = function(part)
            if has_nan(found):
                found = np.where(np.isnan(found), 0.0, found)
            if w is not None:  # first, since weights may be as large as numbers can be
                found = found * (w[:, None] / observed)
            total += found.sum(axis=0)
        return total / observed if not self.weight.size else total


def triangle(parts: Iterable[Array]) -> Array:
    """Return R of the QR decomposition of rows that come in blocks (m, d): (min(n, d), d).

    Columns keep their digits as in one decomposition of all rows.
    """
    found: Array | None = None
    for part in parts:
        rows = part if found is None else np.concatenate([found, part])
        found = np.linalg.qr(rows, mode="r")
    assert found is not None  # a table has rows
    return found
