"""Tables that may not fit into memory, of Dask or memory-mapped: their rows in a file.

A Dask collection is computed once, block by block, and each block is written as it is done; what
the fits read is the file (`streams`).  So its graph is not computed anew for every pass, and at no
time is there more of it in memory than the blocks that are in the making.  Dask itself is never
imported unless its objects come in.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from mmap import mmap
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm.covariance import Array
from bayesgmm.data.cells import floats_of
from bayesgmm.errors import EmptyDataError, NonNumericError, ScaleError, ShapeError
from bayesgmm.streams import append, blocks, mapped, room, scratch


@dataclass(frozen=True, eq=False)
class Stream:
    """A table that comes in blocks of rows.

    Attributes
    ----------
    columns : pandas.Index
    is_named : bool
        Whether the columns came with names.
    parts : sequence
        The blocks: arrays or DataFrames, or Dask's promises of such.
    begins : tuple of int, optional
        At which row each begins; None if that is not known beforehand.
    index : pandas.Index, optional
        The row labels; None if the blocks have them, or row numbers do.
    whole : (n, d) array, optional
        All of it, where it can be used as it is.
    epsilon : (d,) array, optional
        Relative spacing of the number types that ``whole`` came in. Default: that of doubles.
    chosen : tuple of int, optional
        The columns to be read; None for all.
    """

    columns: pd.Index[Any]
    is_named: bool
    parts: Sequence[Any]
    begins: tuple[int, ...] | None = None
    index: pd.Index[Any] | None = None
    whole: Array | None = None
    epsilon: Array | None = None
    chosen: tuple[int, ...] | None = None

    def take(self, chosen: Sequence[int]) -> Stream:
        """Return the stream with some of its columns, in an order."""
        return replace(
            self,
            columns=self.columns[list(chosen)],
            chosen=tuple(chosen),
            whole=self.whole if list(chosen) == list(range(len(self.columns))) else None,
        )


def stream_of(X: Any) -> Stream | None:
    """Return what came as a stream, if X is of a kind that may not fit into memory.

    Raises
    ------
    ShapeError
        If it is one of Dask's that is no table.
    """
    if isinstance(X, Stream):
        return X
    if isinstance(X, np.memmap):
        is_table = X.dtype.names is None and X.ndim in (1, 2)
        return _of_file(X) if is_table else None
    if isinstance(X, xr.DataArray):
        return None if X.chunks is None else _labelled(X)
    if isinstance(X, xr.Dataset | xr.DataTree) or not hasattr(X, "__dask_graph__"):
        return None
    if not isinstance(getattr(X, "ndim", None), int):
        raise ShapeError(
            f"X is a Dask {type(X).__name__}, which is no table; pass a Dask array or DataFrame, "
            "or what X.compute() gives"
        )
    if hasattr(X, "to_frame") and X.ndim == 1:  # a Series
        is_named = X.name is not None
        return replace(_of_frame(X.to_frame(X.name if is_named else "x0")), is_named=is_named)
    return _of_frame(X) if hasattr(X, "columns") else _of_array(X)


def _of_frame(X: Any) -> Stream:
    columns = pd.Index(X.columns)
    return Stream(columns, not isinstance(columns, pd.RangeIndex), X.to_delayed())


def _of_array(X: Any) -> Stream:
    if X.ndim not in (1, 2):
        raise ShapeError(
            f"X must be a table of observations by features (2-D) or one column (1-D), but it is "
            f"{X.ndim}-D with shape {X.shape}"
        )
    X = X.rechunk({1: -1}) if X.ndim == 2 else X[:, None]
    sizes = np.array(X.chunks[0], dtype=float)
    begins = None
    if np.isfinite(sizes).all():
        begins = tuple(int(b) for b in np.cumsum(sizes) - sizes)
    return Stream(_numbered(X.shape[1]), False, X.to_delayed().ravel().tolist(), begins)


def _of_file(X: np.memmap[Any, Any]) -> Stream:
    rows = X.view(np.ndarray).reshape(len(X), -1)
    whole = None
    # What may still be changed through X is copied, as all else is.
    base: Any = X.base
    is_fixed = X.mode == "r" and isinstance(base, mmap) and X.filename is not None
    if is_fixed and X.dtype == np.float64 and X.dtype.isnative and X.flags.c_contiguous:
        again = np.memmap(X.filename, X.dtype, "c", X.offset, rows.shape)  # type: ignore[call-overload]
        whole = again.view(np.ndarray)
    return replace(of_rows(rows, _numbered(rows.shape[1])), is_named=False, whole=whole)


def of_rows(values: Array, columns: pd.Index[Any]) -> Stream:
    """Return rows on disk (n, d) as a stream, to be used as they are."""
    parts = list(blocks(len(values)))
    begins = tuple(part.start for part in parts)
    return Stream(columns, True, [values[part] for part in parts], begins, whole=values)


def _labelled(X: xr.DataArray) -> Stream:
    found = _of_array(X.data)
    rows, *columns = (X.indexes.get(dim) for dim in X.dims)
    if not columns:
        columns = [None if X.name is None else pd.Index([X.name], dtype=object)]
    if columns[0] is not None:
        found = replace(found, columns=columns[0], is_named=True)
    return replace(found, index=rows)


def _numbered(d: int) -> pd.Index[Any]:
    return pd.Index([f"x{j}" for j in range(d)], dtype=object)


# To a file


@dataclass(frozen=True, eq=False)
class _Part:
    """What is known of a block that was written: where it is in the file, and how long."""

    begin: int
    index: pd.Index[Any]
    epsilon: Array
    error: Exception | None = None


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes blocks to a file as they come, from any thread."""

    stream: Stream
    names: tuple[str, ...]
    file: BinaryIO
    lock: Any = field(default_factory=Lock)

    def __call__(self, i: int, block: Any) -> _Part:
        """Write a block, and return where it is."""
        stream, d = self.stream, len(self.names)
        if isinstance(block, pd.DataFrame):
            frame = block
        else:
            array = np.asarray(block)
            if not array.dtype.isnative:
                array = array.astype(array.dtype.newbyteorder("="))
            begin = self.file.tell() // (8 * d) if stream.begins is None else stream.begins[i]
            labels: Any = pd.RangeIndex(begin, begin + len(array))
            frame = pd.DataFrame(
                array, labels if stream.index is None else stream.index[labels], copy=False
            )
        if stream.chosen is not None:
            frame = frame.iloc[:, list(stream.chosen)]
        nothing = _Part(0, frame.index, np.zeros(d))
        if not len(frame):
            return nothing
        try:
            values, epsilon, integers = floats_of(frame, self.names)
        except NonNumericError as error:  # the first block's is told, not the first that is done
            return replace(nothing, error=error)
        if integers:
            name = self.names[min(integers)]
            return replace(
                nothing,
                error=ScaleError(
                    f"column {name!r} holds integers beyond 2**53, which are kept exactly only "
                    "where all data are in memory; subtract an offset, or convert: .astype(float)"
                ),
            )
        with self.lock:
            begin = self.file.tell() // (8 * d)
            append(self.file, values)
        return _Part(begin, frame.index, epsilon)


def stored(stream: Stream, names: tuple[str, ...]) -> tuple[Array, Array, pd.Index[Any]]:
    """Return the rows of a stream, in a file.

    Parameters
    ----------
    stream : Stream
    names : tuple of str
        Of its columns.

    Returns
    -------
    values : (n, d) array
        NaN where missing.
    epsilon : (d,) array
        Relative spacing of the number types, as in `table.Table`.
    index : pandas.Index
        The row labels.

    Raises
    ------
    NonNumericError, ScaleError, EmptyDataError, StorageError
    """
    d = len(names)
    if stream.whole is not None and len(stream.whole):
        numbers = pd.RangeIndex(len(stream.whole))
        labels = numbers if stream.index is None else stream.index
        return stream.whole, _epsilon(stream, d), labels
    with scratch() as file:
        parts = _written(stream, _Writer(stream, names, file))
        if error := next((part.error for part in parts if part.error), None):
            raise error
        n = sum(len(part.index) for part in parts)
        if n == 0:
            raise EmptyDataError("X has no rows; was everything filtered out?")
        values = mapped(file, (n, d))
    index = stream.index
    if index is None:
        first, *others = (part.index for part in parts if len(part.index))
        index = first.append(others) if others else first
    epsilon = np.array([part.epsilon for part in parts]).max(axis=0)
    return _in_order(values, parts), epsilon, index


def _epsilon(stream: Stream, d: int) -> Array:
    return np.full(d, np.finfo(np.float64).eps) if stream.epsilon is None else stream.epsilon


def _written(stream: Stream, write: _Writer) -> Sequence[_Part]:
    """Write all blocks, and return where they are, in their own order."""
    if not any(hasattr(part, "__dask_graph__") for part in stream.parts):
        return [write(i, part) for i, part in enumerate(stream.parts)]
    dask = importlib.import_module("dask")
    scheduler = dask.base.get_scheduler()
    module = "dask." if scheduler is None else scheduler.__module__
    has_labels = stream.begins is not None or stream.is_named
    if not (module.startswith("dask.") and has_labels):
        # By a cluster, whose machines have not this file; or to count rows: one after another.
        return [write(i, part.compute()) for i, part in enumerate(stream.parts)]
    promise = dask.delayed(write, traverse=False)
    here = "threads" if scheduler is None or "multiprocessing" in module else scheduler
    tasks = [promise(i, part) for i, part in enumerate(stream.parts)]
    found: Sequence[_Part] = dask.compute(*tasks, scheduler=here)
    return found


def _in_order(values: Array, parts: Sequence[_Part]) -> Array:
    """Return rows in the order of the blocks, which may have been done in another one."""
    long = [part for part in parts if len(part.index)]
    if all(one.begin < other.begin for one, other in pairwise(long)):
        return values
    ordered, end = room(*values.shape, on_disk=True), 0
    for part in long:
        begin, end = end, end + len(part.index)
        ordered[begin:end] = values[part.begin : part.begin + len(part.index)]
    return ordered
