r"""The mixture's log-likelihood and the conjugate prior's terms as PyTensor Ops.

`MixtureLogp` returns the log-likelihood *and* its gradient from one pass over the data; its
pullback only scales its own other outputs (Fisher's identity: the gradient of :math:`\ell` is that
of Q with the sums held fixed).  A model keeps an ordinary density per row, `MixtureRows`; a rewrite
turns the sum of that into `MixtureLogp` before anything is differentiated.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numba
import numpy as np
import pytensor.tensor as pt
from pytensor.compile.mode import optdb
from pytensor.gradient import DisconnectedType, grad_not_implemented
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.link.numba.dispatch.basic import (
    numba_funcify,
    numba_njit,
    register_funcify_default_op_cache_key,
)
from pytensor.tensor.math import Sum
from pytensor.tensor.rewriting.basic import register_canonicalize

from bayesgmm.numeric import chart_ops, kernel, kernel_ops


def _doubles(values: tuple[Any, ...], ndims: tuple[int, ...], name: str) -> list[Any]:
    inputs = [pt.as_tensor_variable(v).astype("float64") for v in values]
    if tuple(v.type.ndim for v in inputs) != ndims:
        raise TypeError(f"{name} takes inputs of dimensions {ndims}")
    return inputs


class MixtureLogp(Op):
    """Log-likelihood of (x (n, d), weight (n,) or (0,), log_weight (k,), mean, covariance).

    After these the arrays of a `layout.Layout`, where rows are known in part (NaN is missing).
    Outputs: the log-likelihood, and its gradients by log_weight, mean and covariance.
    """

    __props__ = ("diagonal",)

    def __init__(self, diagonal: bool) -> None:
        self.diagonal = diagonal

    def make_node(self, *values: Any) -> Any:  # noqa: D102
        inputs = _with_layout(values, type(self).__name__)
        shapes = [v.type.shape for v in inputs[2:5]]
        return Apply(self, inputs, [pt.tensor(dtype="float64", shape=s) for s in [(), *shapes]])

    def infer_shape(self, node: Any, shapes: Any) -> Any:  # noqa: D102
        return [(), *shapes[2:5]]

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:  # noqa: D102
        results = kernel_ops.known_in_part(*_kernels_order(inputs), self.diagonal)
        for storage, value in zip(outputs, results, strict=True):
            storage[0] = np.asarray(value)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:  # noqa: D102
        no_second = [grad_not_implemented(self, i, v) for i, v in enumerate(inputs)]
        if not all(isinstance(c.type, DisconnectedType) for c in cotangents[1:]):
            return no_second
        return [*no_second[:2], *(cotangents[0] * g for g in outputs[1:]), *no_second[5:]]


def _with_layout(values: tuple[Any, ...], name: str) -> list[Any]:
    """Return the inputs of an Op of rows; without a layout, one that says all is known."""
    if len(values) == 5:
        values += (*np.empty((2, 0)), *np.empty((3, 0, 0)))
    return _doubles(values, (2, 1, 1, 2, 3, 1, 1, 2, 2, 2), name)


def _kernels_order(inputs: Any) -> list[Any]:
    """Return the inputs as `kernel_ops` takes them: what is known of rows beside the rows."""
    every = [np.ascontiguousarray(v) for v in inputs]
    return [*every[:2], *every[5:], *every[2:5]]


@register_funcify_default_op_cache_key(MixtureLogp)
def _numba_mixture_logp(op: Any, node: Any, **kwargs: Any) -> Any:
    diagonal = bool(op.diagonal)

    @numba_njit(error_model="numpy", fastmath=False)
    def mixture_logp(  # type: ignore[no-untyped-def]
        x, weight, log_weight, mean, covariance, order, begin, observed, factor, known
    ):
        value, by_log_weight, by_mean, by_covariance = kernel_ops.known_in_part(
            *(x, weight, order, begin, observed, factor, known),
            *(log_weight, mean, covariance, diagonal),
        )
        return np.asarray(value), by_log_weight, by_mean, by_covariance

    return mixture_logp, kernel.VERSION


class MixtureRows(Op):
    """Weighted log-density of every row, (n,); inputs as those of `MixtureLogp`."""

    __props__ = ("diagonal",)

    def __init__(self, diagonal: bool) -> None:
        self.diagonal = diagonal

    def make_node(self, *values: Any) -> Any:  # noqa: D102
        inputs = _with_layout(values, type(self).__name__)
        return Apply(self, inputs, [pt.tensor(dtype="float64", shape=inputs[0].type.shape[:1])])

    def infer_shape(self, node: Any, shapes: Any) -> Any:  # noqa: D102
        return [shapes[0][:1]]

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:  # noqa: D102
        outputs[0][0] = kernel_ops.pointwise(*_kernels_order(inputs), self.diagonal)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:  # noqa: D102
        # sum_n g_n log p(x_n) is a log-likelihood with weights g.
        x, weight, *rest = inputs
        g = cotangents[0]
        scaled = pt.switch(pt.eq(weight.size, 0), g, g * _ones_where_empty(weight, g))
        gradients = MixtureLogp(self.diagonal)(x, scaled, *rest)[1:]
        others = {i: grad_not_implemented(self, i, v) for i, v in enumerate(inputs)}
        return [others[0], others[1], *gradients, *(others[i] for i in range(5, 10))]


def _ones_where_empty(weight: Any, like: Any) -> Any:
    return pt.concatenate([weight, pt.ones(like.shape[0] - weight.shape[0])])


@register_funcify_default_op_cache_key(MixtureRows)
def _numba_mixture_rows(op: Any, node: Any, **kwargs: Any) -> Any:
    diagonal = bool(op.diagonal)

    @numba_njit(error_model="numpy", fastmath=False)
    def mixture_rows(  # type: ignore[no-untyped-def]
        x, weight, log_weight, mean, covariance, order, begin, observed, factor, known
    ):
        return kernel_ops.pointwise(
            *(x, weight, order, begin, observed, factor, known),
            *(log_weight, mean, covariance, diagonal),
        )

    return mixture_rows, kernel.VERSION


@register_canonicalize("fast_compile")
@node_rewriter([Sum])
def sum_of_rows_to_mixture_logp(fgraph: Any, node: Any) -> Any:
    """Sum(MixtureRows(...)) -> MixtureLogp(...)[0]: value and gradient from one pass."""
    rows = node.inputs[0]
    is_rows = rows.owner is not None and isinstance(rows.owner.op, MixtureRows)
    if not is_rows or node.op.axis not in (None, (0,)):
        return None
    return [MixtureLogp(rows.owner.op.diagonal)(*rows.owner.inputs)[0]]


class ConjugateTerms(Op):
    """Log-density terms of a conjugate prior, (k,), and their gradients by mean and covariance.

    Inputs: mean (k, d), covariance (k, d, d), location (d,), scatter (d, d), count, shrinkage.
    """

    __props__ = ("diagonal",)

    def __init__(self, diagonal: bool) -> None:
        self.diagonal = diagonal

    def make_node(self, *values: Any) -> Any:  # noqa: D102
        inputs = _doubles(values, (2, 3, 1, 2, 0, 0), type(self).__name__)
        shapes = [inputs[0].type.shape[:1], inputs[0].type.shape, inputs[1].type.shape]
        return Apply(self, inputs, [pt.tensor(dtype="float64", shape=s) for s in shapes])

    def infer_shape(self, node: Any, shapes: Any) -> Any:  # noqa: D102
        return [shapes[0][:1], shapes[0], shapes[1]]

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:  # noqa: D102
        *arrays, count, shrinkage = inputs
        results = kernel_ops.pseudo_loglik_and_gradient(
            *map(np.ascontiguousarray, arrays), float(count), float(shrinkage), self.diagonal
        )
        for storage, value in zip(outputs, results, strict=True):
            storage[0] = value

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:  # noqa: D102
        fixed = [grad_not_implemented(self, i, v) for i, v in enumerate(inputs)]
        if not all(isinstance(c.type, DisconnectedType) for c in cotangents[1:]):
            return fixed
        g = cotangents[0]
        return [g[:, None] * outputs[1], g[:, None, None] * outputs[2], *fixed[2:]]


@register_funcify_default_op_cache_key(ConjugateTerms)
def _numba_conjugate_terms(op: Any, node: Any, **kwargs: Any) -> Any:
    diagonal = bool(op.diagonal)

    @numba_njit(error_model="numpy", fastmath=False)
    def conjugate_terms(mean, covariance, location, scatter, count, shrinkage):  # type: ignore[no-untyped-def]
        return kernel_ops.pseudo_loglik_and_gradient(
            mean, covariance, location, scatter, count.item(), shrinkage.item(), diagonal
        )

    return conjugate_terms, kernel.VERSION


class Chart(Op):
    """Covariances (k, d, d) of a family from its unconstrained vector; see `model.FamilyChart`.

    Inputs: vector (p + q,), spectrum (k d, p), below (k d (d-1)/2, q), unit (d,).  Outputs: the
    covariances, and the log-density of uniform rotations (0 unless ``polar``).
    """

    __props__ = ("polar",)

    def __init__(self, polar: bool) -> None:
        self.polar = polar

    def make_node(self, *values: Any) -> Any:  # noqa: D102
        inputs = _doubles(values, (1, 2, 2, 1), type(self).__name__)
        d = inputs[3].type.shape[0]
        k = inputs[1].type.shape[0] // d
        return Apply(self, inputs, [pt.tensor(dtype="float64", shape=s) for s in ((k, d, d), ())])

    def infer_shape(self, node: Any, shapes: Any) -> Any:  # noqa: D102
        return [tuple(pt.as_tensor(s) for s in node.outputs[0].type.shape), ()]

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:  # noqa: D102
        found = chart_ops.chart(*map(np.ascontiguousarray, inputs), self.polar)
        outputs[0][0], outputs[1][0] = found[0], np.asarray(found[3])

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:  # noqa: D102
        fixed = [grad_not_implemented(self, i, v) for i, v in enumerate(inputs)]
        slope, by_volume = (
            pt.zeros_like(out) if isinstance(c.type, DisconnectedType) else c
            for c, out in zip(cotangents, outputs, strict=True)
        )
        return [ChartPullback(self.polar)(*inputs, slope, by_volume), *fixed[1:]]


@register_funcify_default_op_cache_key(Chart)
def _numba_chart(op: Any, node: Any, **kwargs: Any) -> Any:
    polar = bool(op.polar)

    @numba_njit(error_model="numpy", fastmath=False)
    def chart(vector, spectrum, below, unit):  # type: ignore[no-untyped-def]
        covariance, _, _, log_volume = chart_ops.chart(vector, spectrum, below, unit, polar)
        return covariance, np.asarray(log_volume)

    return chart, kernel.VERSION


class ChartPullback(Op):
    """Gradient by the vector of `Chart`, from the gradients by its outputs."""

    __props__ = ("polar",)

    def __init__(self, polar: bool) -> None:
        self.polar = polar

    def make_node(self, *values: Any) -> Any:  # noqa: D102
        inputs = _doubles(values, (1, 2, 2, 1, 3, 0), type(self).__name__)
        return Apply(self, inputs, [inputs[0].type()])

    def infer_shape(self, node: Any, shapes: Any) -> Any:  # noqa: D102
        return [shapes[0]]

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:  # noqa: D102
        *chart, slope, by_volume = inputs
        arrays = map(np.ascontiguousarray, chart)
        slope = np.ascontiguousarray(slope)
        outputs[0][0] = chart_ops.chart_pullback(*arrays, self.polar, slope, float(by_volume))

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:  # noqa: D102
        return [grad_not_implemented(self, i, v) for i, v in enumerate(inputs)]


@register_funcify_default_op_cache_key(ChartPullback)
def _numba_chart_pullback(op: Any, node: Any, **kwargs: Any) -> Any:
    polar = bool(op.polar)

    @numba_njit(error_model="numpy", fastmath=False)
    def chart_pullback(vector, spectrum, below, unit, slope, by_volume):  # type: ignore[no-untyped-def]
        return chart_ops.chart_pullback(
            vector, spectrum, below, unit, polar, slope, by_volume.item()
        )

    return chart_pullback, kernel.VERSION


class FamilyVector(Op):
    """The inverse of `Chart`, in NumPy: for initial points, once for a model; no gradient."""

    __props__ = ("chart",)

    def __init__(self, chart: Any) -> None:
        self.chart = chart  # compared by identity

    def make_node(self, covariance: Any) -> Any:  # noqa: D102
        inputs = _doubles((covariance,), (3,), type(self).__name__)
        return Apply(self, inputs, [pt.tensor(dtype="float64", shape=(self.chart.size,))])

    def infer_shape(self, node: Any, shapes: Any) -> Any:  # noqa: D102
        return [(pt.as_tensor(self.chart.size),)]

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:  # noqa: D102
        outputs[0][0] = self.chart.vector(inputs[0])


@numba_funcify.register(FamilyVector)
def _numba_family_vector(op: Any, node: Any, **kwargs: Any) -> Any:
    vector = op.chart.vector

    @numba_njit
    def core(covariance):  # type: ignore[no-untyped-def]
        with numba.objmode(out="float64[::1]"):
            out = vector(covariance)
        return out

    return core


@node_rewriter([MixtureLogp, MixtureRows, ConjugateTerms, Chart, ChartPullback, FamilyVector])
def load_for_jax(fgraph: Any, node: Any) -> None:
    """Change nothing, but tell JAX what the Ops are: only its own mode runs the rewrite."""
    import_module("bayesgmm.posterior.op_jax")


optdb.register("bayesgmm_load_for_jax", dfs_rewriter(load_for_jax), "jax", position=100)
