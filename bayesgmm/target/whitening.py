r"""A log-posterior in coordinates in which it is about standard normal: the metric is EM's.

NUTS takes short paths where the posterior is round.  Its size near EM's optimum is known before the
first step: with centre c and root R, :math:`R R^\top` the inverse of the negative Hessian there,
what is sampled is :math:`f(c + R z)` with the gradient :math:`R^\top \nabla f`.  So the first mass
matrix is a whole one, and what the sampler adapts on top of it, a diagonal, has little left to
learn.  It costs two products of a matrix and a vector for each pass over the data.

The C functions here call that of `density` by its address: they are compiled once, whatever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from bayesgmm.moments import Array
from bayesgmm.target.density import Target

_pointer = types.CPointer(types.float64)
_table = types.CPointer(types.voidptr)


@intrinsic
def _call(_, function, size, point, slope, value, table):  # type: ignore[no-untyped-def]
    """Call a density's C function by its address."""

    def codegen(_, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address, *rest = arguments
        kind = ir.FunctionType(ir.IntType(64), [argument.type for argument in rest])
        return builder.call(builder.bitcast(address, kind.as_pointer()), rest)

    return types.int64(function, size, point, slope, value, table), codegen


def _log_density(size, z_, slope_, value_, table):  # type: ignore[no-untyped-def]
    """Write gradient and value at a point of the new coordinates; the code of the density."""
    centre = carray(table[0], (size,), np.float64)
    root = carray(table[1], (size, size), np.float64)
    z, slope = carray(z_, (size,)), carray(slope_, (size,))
    point, inner = np.empty(size), np.empty(size)
    for i in range(size):
        total = centre[i]
        for j in range(size):
            total += root[i, j] * z[j]
        point[i] = total
        slope[i] = 0.0
    code = _call(table[2], size, point.ctypes.data, inner.ctypes.data, value_, table[3])
    for i in range(size):
        for j in range(size):
            slope[j] += root[i, j] * inner[i]
    return code


def _point(size, n_out, z_, out_, table):  # type: ignore[no-untyped-def]
    """Keep a draw in the coordinates of the density."""
    centre = carray(table[0], (size,), np.float64)
    root = carray(table[1], (size, size), np.float64)
    z = carray(z_, (size,))
    for i in range(size):
        total = centre[i]
        for j in range(size):
            total += root[i, j] * z[j]
        out_[i] = total
    return 0


@cache
def callbacks() -> tuple[Any, Any]:
    """Return the log-density and the keeping of a draw as C callbacks; compiled on first use."""
    settings = {"cache": True, "error_model": "numpy"}
    density = types.int64(types.uint64, _pointer, _pointer, _pointer, _table)
    keep = types.int64(types.uint64, types.uint64, _pointer, _pointer, _table)
    return cfunc(density, **settings)(_log_density), cfunc(keep, **settings)(_point)


@dataclass(frozen=True, eq=False)
class Whitened:
    """A log-posterior as a function of z, with x = centre + root z.

    Parameters
    ----------
    target : Target
    centre : (p,) array
    root : (p, p) array
    """

    target: Target
    centre: Array
    root: Array

    @cached_property
    def _arrays(self) -> tuple[Array, Array]:
        return np.ascontiguousarray(self.centre), np.ascontiguousarray(self.root)

    @cached_property
    def pointers(self) -> Any:
        """What the C functions read: addresses that are good as long as this lives."""
        own = [array.ctypes.data for array in self._arrays]
        other = [self.target.function.address, self.target.pointers.ctypes.data]
        return np.array([*own, *other], dtype=np.uintp)

    def inverse(self, point: Array) -> Array:
        """Return z of a point x."""
        return np.linalg.solve(self.root, point - self.centre)
