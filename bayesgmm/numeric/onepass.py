"""The pass over the data, written once for every number of features and compiled for each.

Rows are taken in blocks that stay in cache, the features of a block lie apart, and every operation
is on `simd.LANES` rows at a time.  For each block: whitened residuals and log-densities of all
components; responsibilities and the log-likelihood; the sums.  Matrices are taken in tiles, so that
what is computed stays in registers: the work is that of a matrix product, at its speed.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import binding

from bayesgmm.numeric.simd import IS_WIDE, LANES, Array, Code, Integer, Vector

_TILE = 4 if IS_WIDE else 3  # features that are computed together
_STEP = 4 if IS_WIDE else 2  # vectors of rows that are whitened together
_GROUP = _STEP * LANES
_UNROLLED = 2 * _TILE  # most features for which all tiles are written out
_PAIR = 2  # vectors of exponentials that are computed together
# What a row of so small a responsibility adds to a sum is below the rounding of any other row's:
# its squared distance is below 1400, that at which the exponential is 0.
_NOTHING = 1e-30
_INTEGERS = ("begin", "end", "d", "k", "is_weighted")
_ARRAYS = ("x", "weight", "constant", "mean", "whitening", "out", "table")


class Pass:
    """The pass as it is written, for ``d`` features or for any number that leaves ``rest``.

    Parameters
    ----------
    name : str
    d : int or None
        Number of features, if it is to be known beforehand.
    rest : int
        Features in the last tile, or 0 if it is full.
    diagonal : bool
        Whether the whitening is diagonal.
    by_row : bool
        Whether to write log-densities and responsibilities instead of their sums.
    """

    def __init__(
        self, name: str, d: int | None, rest: int, *, diagonal: bool, by_row: bool
    ) -> None:
        self.code = code = Code(name, _INTEGERS, _ARRAYS)
        begin, end, given, self.k, is_weighted = code.integers
        x, weight, self.constant, self.mean, self.whitening, out, table = code.arrays
        self.d: Integer | int = given if d is None else d
        self.rest, self.diagonal = rest, diagonal
        self.is_one_tile = d is not None and d <= _TILE  # all stays in registers
        k, d_ = self.k, code.integer(self.d)
        # Rows of a block: their residuals should stay in the second cache.  A line of numbers
        # more from one feature to the next, or all features would share a few places in the first.
        block = code.choose(k * d_ > 128, code.choose(k * d_ > 2048, 64, 128), 256)
        self.stride = stride = block + LANES
        self.loglik, self.zeroth = out, out + 1
        self.first = self.zeroth + k
        self.second = self.first + k * d_
        if not by_row:
            with code.loop(0, 1 + k + k * d_ + k * d_ * d_) as i:
                out.zero(i)
        size = (k * d_ + 3 * d_ + k + 5) * stride + d_ * _GROUP
        with code.scratch(size) as place, code.loop(begin, end, block) as start:
            # Of one block; a feature, or a component, has the next `stride` numbers.
            self.x = place  # (d)
            self.z = self.x + d_ * stride  # (k, d) whitened residuals
            self.r = self.z + k * d_ * stride  # (k) log-densities; exponentials; responsibilities
            self.top = self.r + k * stride  # the largest of a row's log-densities
            self.share = self.top + stride  # what makes a responsibility of an exponential
            self.weight = self.share + stride
            self.scaled = self.weight + stride  # (d) r z of one component
            self.dense = self.scaled + d_ * stride  # (d) z of rows that count for a component
            self.dense_r = self.dense + d_ * stride
            self.chosen = self.dense_r + stride  # which they are
            self.centred = self.chosen + stride  # (d, group) x - mean of a few rows
            others = end - start
            self.n = code.choose(others < block, others, block)
            self.size = (self.n + (_GROUP - 1)) // _GROUP * _GROUP
            self._set_apart(x + start * d_)
            with code.loop(0, k) as j:
                self._whiten(j)
            if by_row:
                self._write_rows(out + start, table + start, is_weighted > 0, end)
            else:
                self._responsibilities(weight + start, is_weighted > 0)
                with code.loop(0, k) as j:
                    self._add_sums(j)

    def _tiles(self, end: Integer | int | None = None) -> Iterator[tuple[Integer | int, int]]:
        """Write what follows for each tile (before a feature): first feature, number of them."""
        stop = self.d - self.rest if end is None else end
        if isinstance(stop, int):
            yield from ((first, _TILE) for first in range(0, stop, _TILE))
        else:
            with self.code.loop(0, stop, _TILE) as f:
                yield f, _TILE
        if end is None and self.rest:
            yield self.d - self.rest, self.rest

    def _set_apart(self, rows: Array) -> None:
        """Copy the block so that the values of each feature are side by side."""
        code, d, x, stride = self.code, self.d, self.x, self.stride
        done = self.n // LANES * LANES
        with code.loop(0, done, LANES) as i:
            if self.is_one_tile and isinstance(d, int):
                for column, values in enumerate(rows.load_strided(i * d, d)):
                    x.store(stride * column + i, values)
            else:
                with code.loop(0, d) as f:
                    x.store(f * stride + i, rows.gather(i * d + f, d))
        with code.loop(done, self.n) as i, code.loop(0, d) as f:
            x.copy(f * stride + i, rows, i * d + f)
        # Filled up with the first row, which gets no weight.
        with code.loop(self.n, self.size) as i, code.loop(0, d) as f:
            x.copy(f * stride + i, rows, f)
        with code.loop(0, self.size, LANES) as i:
            self.top.store(i, code.vector(-math.inf))

    def _whiten(self, j: Integer) -> None:
        """Write z = W (x - mean) and constant - |z|^2 / 2 of a component, and the largest yet."""
        code, d, stride = self.code, self.d, self.stride
        z, density = self.z + j * d * stride, self.r + j * stride
        mean, whitening = self.mean + j * d, self.whitening + j * d * d
        constant = self.constant.every(j)
        with code.loop(0, self.size, _GROUP) as i:
            at = [i + s * LANES for s in range(_STEP)]
            centred = self._centred(mean, at)
            square = [code.variable() for _ in at]
            for f0, width in self._tiles():
                tile = [[code.variable() for _ in at] for _ in range(width)]

                def add_column(g: Integer | int, rows: range) -> None:
                    values = centred(g)
                    for row in rows:
                        w = whitening.every((f0 + row) * d + g)  # noqa: B023
                        for sum_, value in zip(tile[row], values, strict=True):  # noqa: B023
                            sum_.set(code.fma(w, value, sum_.get()))

                if not (self.diagonal or (isinstance(f0, int) and f0 == 0)):
                    with code.loop(0, f0) as g:
                        add_column(g, range(width))
                for row in range(width):
                    add_column(f0 + row, range(row, row + 1 if self.diagonal else width))
                for row in range(width):
                    for place, sum_, total in zip(at, tile[row], square, strict=True):
                        value = sum_.get()
                        z.store((f0 + row) * stride + place, value)
                        total.set(code.fma(value, value, total.get()))
            for place, total in zip(at, square, strict=True):
                value = code.fma(total.get(), -0.5, constant)
                density.store(place, value)
                self.top.store(place, code.maximum(value, self.top.load(place)))

    def _centred(self, mean: Array, at: list[Integer]) -> Callable[[Integer | int], list[Vector]]:
        """Return x - mean of a few rows by feature: kept in registers, or in memory if many."""

        def centre(f: Integer | int) -> list[Vector]:
            m = mean.every(f)
            return [self.x.load(f * self.stride + place) - m for place in at]

        if self.diagonal:
            return centre  # each is used once
        if self.is_one_tile and isinstance(self.d, int):
            return [centre(f) for f in range(self.d)].__getitem__  # type: ignore[return-value]
        with self.code.loop(0, self.d) as f:
            for s, value in enumerate(centre(f)):
                self.centred.store(f * _GROUP + s * LANES, value)
        return lambda g: [self.centred.load(g * _GROUP + s * LANES) for s in range(_STEP)]

    def _exponentials(self) -> Iterator[tuple[Integer, Vector, Vector, Any]]:
        """Write exp(log-density - largest), and what follows for a few rows at a time.

        Gives their place, the largest, the sum of the exponentials (1 for what is no row), and
        which are rows.
        """
        code = self.code
        with code.loop(0, self.size, _PAIR * LANES) as i:
            at = [i + s * LANES for s in range(_PAIR)]
            tops = [self.top.load(place) for place in at]
            sums = [code.variable() for _ in at]
            with code.loop(0, self.k) as j:
                r = self.r + j * self.stride
                for place, top, sum_ in zip(at, tops, sums, strict=True):
                    value = code.exp(r.load(place) - top)
                    r.store(place, value)
                    sum_.set(sum_.get() + value)
            for place, top, sum_ in zip(at, tops, sums, strict=True):
                is_row = code.is_below(place, self.n)
                yield place, top, code.where(is_row, sum_.get(), 1.0), is_row

    def _responsibilities(self, weight: Array, is_weighted: Any) -> None:
        """Write exponentials, and what makes responsibilities of them; add the log-likelihood."""
        code = self.code
        with code.when(is_weighted):
            with code.loop(0, self.n) as i:
                self.weight.copy(i, weight, i)
            with code.loop(self.n, self.size) as i:
                self.weight.zero(i)
        loglik, product = code.variable(), code.variable(1.0)
        for place, top, total, is_row in self._exponentials():
            with code.either(is_weighted) as (yes, no):
                with yes:
                    w = self.weight.load(place)
                    loglik.set(code.fma(w, top + code.log(total), loglik.get()))
                    self.share.store(place, w / total)
                with no:
                    loglik.set(loglik.get() + code.where(is_row, top, 0.0))
                    product.set(product.get() * total)  # one logarithm for many: 1 <= total <= k
                    self.share.store(place, code.where(is_row, code.vector(1.0) / total, 0.0))
        self.loglik.add_total(0, loglik.get() + code.log(product.get()))

    def _write_rows(self, density: Array, table: Array, is_wanted: Any, n: Integer) -> None:
        """Write log-densities and, if wanted, responsibilities (k, n)."""
        code = self.code
        for place, top, total, _ in self._exponentials():
            self.top.store(place, top + code.log(total))
            self.share.store(place, code.vector(1.0) / total)
        with code.loop(0, self.n) as i:
            density.copy(i, self.top, i)
        with code.when(is_wanted), code.loop(0, self.k) as j:
            r, target = self.r + j * self.stride, table + j * n
            with code.loop(0, self.size, LANES) as i:
                r.store(i, r.load(i) * self.share.load(i))
            with code.loop(0, self.n) as i:
                target.copy(i, r, i)

    def _add_sums(self, j: Integer) -> None:
        """Add r, r z and r z z' of a component to the sums."""
        code, d, stride = self.code, self.d, self.stride
        z, r = self.z + j * d * stride, self.r + j * stride
        first, second = self.first + j * d, self.second + j * d * d
        size = self.size
        if isinstance(d, int) or self.diagonal:
            if not self.is_one_tile:
                self._to_responsibilities(j, r)
        else:
            z, r, size = self._that_count(j, z, r)
        for f0, width in self._tiles():
            count = code.variable()
            sums = [code.variable() for _ in range(width)]
            pairs = {
                (f, g): code.variable()
                for f in range(width)
                for g in range(f if self.diagonal else 0, f + 1)
            }
            with code.loop(0, size, LANES) as i:
                share = r.load(i)
                if self.is_one_tile:
                    share = share * self.share.load(i)
                    count.set(count.get() + share)
                values = [z.load((f0 + f) * stride + i) for f in range(width)]
                for f, value in enumerate(values):
                    scaled = share * value
                    if not (self.is_one_tile or self.diagonal):
                        self.scaled.store((f0 + f) * stride + i, scaled)
                    sums[f].set(sums[f].get() + scaled)
                    for g in range(f + 1):
                        if (f, g) in pairs:
                            sum_ = pairs[f, g]
                            sum_.set(code.fma(scaled, values[g], sum_.get()))
            if self.is_one_tile:
                self.zeroth.add_total(j, count.get())
            for f, sum_ in enumerate(sums):
                first.add_total(f0 + f, sum_.get())
            for (f, g), sum_ in pairs.items():
                second.add_total((f0 + f) * d + (f0 + g), sum_.get())
            if not (self.diagonal or (isinstance(f0, int) and f0 == 0)):
                self._add_rectangle(f0, width, z, second, size)

    def _add_rectangle(
        self, f0: Integer | int, width: int, z: Array, second: Array, size: Integer
    ) -> None:
        """Add r z z' for the features of a tile and all before it."""
        code, d, stride = self.code, self.d, self.stride
        for g0, other in self._tiles(f0):
            sums = [[code.variable() for _ in range(other)] for _ in range(width)]
            with code.loop(0, size, LANES) as i:
                left = [self.scaled.load((f0 + f) * stride + i) for f in range(width)]
                right = [z.load((g0 + g) * stride + i) for g in range(other)]
                for f in range(width):
                    for g in range(other):
                        sums[f][g].set(code.fma(left[f], right[g], sums[f][g].get()))
            for f in range(width):
                for g in range(other):
                    second.add_total((f0 + f) * d + (g0 + g), sums[f][g].get())

    def _to_responsibilities(self, j: Integer, r: Array) -> None:
        count = self.code.variable()
        with self.code.loop(0, self.size, LANES) as i:
            share = r.load(i) * self.share.load(i)
            r.store(i, share)
            count.set(count.get() + share)
        self.zeroth.add_total(j, count.get())

    def _that_count(self, j: Integer, z: Array, r: Array) -> tuple[Array, Array, Integer]:
        """Return z, r and number of the rows with a responsibility; of all, if most have one.

        The work on the sums is d^2 for a row: worth looking first.
        """
        code, d, stride = self.code, self.d, self.stride
        found = code.counter()
        with code.loop(0, self.n) as i:
            self.chosen.set_index(found.get(), i)
            found.set(found.get() + r.exceeds(i, _NOTHING))
        self._to_responsibilities(j, r)
        n = found.get()
        is_few = n + n < self.n
        size = (n + (LANES - 1)) // LANES * LANES
        with code.when(is_few):
            with code.loop(n, size) as i:
                self.dense_r.zero(i)
            with code.loop(0, n) as i:
                self.dense_r.copy(i, r, self.chosen.index(i))
            with code.loop(0, d) as f:
                target, source = self.dense + f * stride, z + f * stride
                with code.loop(n, size) as i:
                    target.zero(i)
                with code.loop(0, n) as i:
                    target.copy(i, source, self.chosen.index(i))
        return (
            code.choose_array(is_few, self.dense, z),
            code.choose_array(is_few, self.dense_r, r),
            code.choose(is_few, size, self.size),
        )


def define_symbol(version: int) -> str:
    """Define the name under which compiled code calls the pass, and return it.

    The version is in the name, so that code in a cache does not find another one's pass.

    Arguments: begin, end, d, k, is_weighted (by row: whether responsibilities are wanted; begin
    is 0), diagonal, by_row (integers); x, weight, constant, mean, whitening, out, table
    (pointers; weight is not read by row, table is not written otherwise).  The variant that is
    needed is compiled when it is first called.
    """
    name = f"bayesgmm_pass_v{version}"
    code = Code(name, (*_INTEGERS, "diagonal", "by_row"), _ARRAYS)
    *_, d, _, _, diagonal, by_row = code.integers
    features = code.choose(d > _UNROLLED, d % _TILE + _UNROLLED, d - 1)
    variant = (features * 2 + diagonal) * 2 + by_row
    code.call_at(ctypes.addressof(_ADDRESSES), variant, [*code.integers[:-2], *code.arrays])
    binding.add_symbol(name, code.compile())
    return name


def _compile(variant: int) -> int:
    """Compile one variant of the pass and return its address."""
    features, diagonal, by_row = variant // 4, variant // 2 % 2 > 0, variant % 2 > 0
    known = features + 1 if features < _UNROLLED else None
    rest = (features + 1 if known else features - _UNROLLED) % _TILE
    name = f"bayesgmm_pass_variant_{variant}"
    return Pass(name, known, rest, diagonal=diagonal, by_row=by_row).code.compile()


def _on_first_call(variant: int) -> Any:
    """Return what stands in the place of a variant until it is called: compile it, and go on."""

    def compile_and_call(*arguments: Any) -> None:
        out = arguments[len(_INTEGERS) + _ARRAYS.index("out")]
        ctypes.c_double.from_address(out).value = math.nan  # if it cannot be compiled
        with _LOCK:
            if _ADDRESSES[variant] == _address(_FIRST[variant]):
                _ADDRESSES[variant] = _compile(variant)
        _SIGNATURE(_ADDRESSES[variant])(*arguments)

    return _SIGNATURE(compile_and_call)


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


_SIGNATURE = ctypes.CFUNCTYPE(
    None, *[ctypes.c_int64] * len(_INTEGERS), *[ctypes.c_void_p] * len(_ARRAYS)
)
_LOCK = threading.Lock()
_FIRST = [_on_first_call(variant) for variant in range(4 * (_UNROLLED + _TILE))]
_ADDRESSES = (ctypes.c_int64 * len(_FIRST))(*map(_address, _FIRST))
