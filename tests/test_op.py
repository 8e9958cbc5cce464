"""The PyTensor Ops: values, shapes, gradients, linkers; one pass for value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import NullTypeGradError, verify_grad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayesgmm.covariance import FAMILIES, Covariance
from bayesgmm.numeric import chart_ops
from bayesgmm.posterior.model import FamilyChart
from bayesgmm.posterior.op import Chart, ChartPullback, ConjugateTerms, MixtureLogp, MixtureRows

# The one runs `perform`, the other the compiled functions that nutpie runs.
PYTHON = Mode(linker="py", optimizer="fast_compile")
NUMBA = "NUMBA"
CHARTS = [(letters, d) for letters in FAMILIES for d in (1, 2, 3, 4)] + [("E", 1), ("V", 1)]
POLAR = [letters for letters in FAMILIES if Covariance(letters).is_polar]

Arrays = tuple[np.ndarray, ...]


def spd(rng: np.random.Generator, k: int, d: int, diagonal: bool) -> np.ndarray:
    root = rng.normal(size=(k, d, d))
    matrix = root @ np.swapaxes(root, 1, 2) + np.eye(d)
    return matrix * np.eye(d) if diagonal else matrix


def mixture(
    rng: np.random.Generator, *, n: int = 37, k: int = 3, d: int = 2, diagonal: bool = False
) -> Arrays:
    """x, log-weight, mean, covariance."""
    weight = rng.dirichlet(np.ones(k))
    return (
        2.0 * rng.normal(size=(n, d)),
        np.log(weight),
        2.0 * rng.normal(size=(k, d)),
        spd(rng, k, d, diagonal),
    )


def by_scipy(x: np.ndarray, *theta: np.ndarray) -> Any:
    """log p(x_n)."""
    joint = [w + multivariate_normal(m, c).logpdf(x) for w, m, c in zip(*theta, strict=True)]
    return logsumexp(joint, axis=0)


def conjugate_by_hand(
    mean: np.ndarray,
    covariance: np.ndarray,
    location: np.ndarray,
    scatter: np.ndarray,
    count: float,
    shrinkage: float,
) -> np.ndarray:
    terms = []
    for m, c in zip(mean, covariance, strict=True):
        inside = scatter + shrinkage * np.outer(m - location, m - location)
        terms.append(-0.5 * (count * np.linalg.slogdet(c)[1] + np.trace(inside @ np.linalg.inv(c))))
    return np.array(terms)


def slope(f: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences of fourth order: good to about 1e-10 of the value."""
    found = np.empty(at.shape)
    for place in np.ndindex(at.shape):
        h = 5e-4 * max(1.0, abs(at[place]))

        def there(steps: int, place: tuple[int, ...] = place, h: float = h) -> float:
            moved = at.copy()
            moved[place] += steps * h
            return f(moved)

        found[place] = (8 * (there(1) - there(-1)) - (there(2) - there(-2))) / (12 * h)
    return found


def agrees(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-8) -> None:
    scale = max(1.0, float(np.abs(wanted).max()))
    assert np.abs(found - wanted).max() <= tolerance * scale


@pytest.fixture(scope="module")
def graphs() -> dict[str, Callable[..., Any]]:
    """Value and gradients of every Op under either linker, compiled once each."""
    x, weight, log_weight = pt.dmatrix("x"), pt.dvector("weight"), pt.dvector("log_weight")
    mean, covariance = pt.dmatrix("mean"), pt.dtensor3("covariance")
    theta = [log_weight, mean, covariance]
    g = pt.dvector("g")
    made: dict[str, Callable[..., Any]] = {}
    for diagonal in (False, True):
        value = MixtureLogp(diagonal)(x, weight, *theta)[0]
        rows = MixtureRows(diagonal)(x, weight, *theta)
        terms = {
            "logp": ([x, weight, *theta], [value, *pt.grad(3.0 * value, theta)]),
            "rows": ([x, weight, *theta, g], [rows, *pt.grad((g * rows).sum(), theta)]),
        }
        location, scatter = pt.dvector("location"), pt.dmatrix("scatter")
        count, shrinkage = pt.dscalar("count"), pt.dscalar("shrinkage")
        inputs = [mean, covariance, location, scatter, count, shrinkage]
        conjugate = ConjugateTerms(diagonal)(*inputs)[0]
        slopes = pt.grad((g * conjugate).sum(), [mean, covariance])
        terms["conjugate"] = ([*inputs, g], [conjugate, *slopes])
        for name, (arguments, results) in terms.items():
            for linker, mode in (("python", PYTHON), ("numba", NUMBA)):
                made[f"{name} {diagonal} {linker}"] = pytensor.function(
                    arguments, results, mode=mode
                )
    return made


LINKERS = pytest.mark.parametrize("linker", ["python", "numba"])
DIAGONAL = pytest.mark.parametrize("diagonal", [False, True])


class TestMixtureLogp:
    @LINKERS
    @DIAGONAL
    @pytest.mark.parametrize(("k", "d"), [(1, 1), (2, 1), (3, 2), (2, 4)])
    def test_value_is_scipys(
        self, graphs: Any, linker: str, diagonal: bool, k: int, d: int
    ) -> None:
        x, *theta = mixture(np.random.default_rng(k + 10 * d), k=k, d=d, diagonal=diagonal)
        value = graphs[f"logp {diagonal} {linker}"](x, np.empty(0), *theta)[0]
        assert value == pytest.approx(by_scipy(x, *theta).sum(), rel=1e-13)

    @LINKERS
    @DIAGONAL
    @pytest.mark.parametrize("weighted", [False, True])
    def test_gradient_is_the_finite_difference(
        self, graphs: Any, linker: str, diagonal: bool, weighted: bool
    ) -> None:
        rng = np.random.default_rng(5)
        x, *theta = mixture(rng, d=3, k=2, diagonal=diagonal)
        weight = rng.uniform(0.2, 3.0, size=len(x)) if weighted else np.empty(0)
        frequency = weight if weighted else np.ones(len(x))
        _, *found = graphs[f"logp {diagonal} {linker}"](x, weight, *theta)
        free = np.eye(3, dtype=bool) if diagonal else np.ones((3, 3), dtype=bool)
        for i, gradient in enumerate(found):

            def value(moved: np.ndarray, i: int = i) -> float:
                at = [moved if j == i else v for j, v in enumerate(theta)]
                symmetric = 0.5 * (at[2] + np.swapaxes(at[2], 1, 2))
                return 3.0 * float(frequency @ by_scipy(x, at[0], at[1], symmetric))

            wanted = slope(value, theta[i])
            if i == 2:
                gradient, wanted = gradient[:, free], wanted[:, free]
            agrees(gradient, wanted)

    @DIAGONAL
    def test_linkers_agree_to_the_bit(self, graphs: Any, diagonal: bool) -> None:
        rng = np.random.default_rng(6)
        x, *theta = mixture(rng, n=1001, d=3, diagonal=diagonal)
        for weight in (np.empty(0), rng.uniform(size=len(x))):
            one, two = (
                graphs[f"logp {diagonal} {linker}"](x, weight, *theta)
                for linker in ("python", "numba")
            )
            for a, b in zip(one, two, strict=True):
                np.testing.assert_array_equal(a, b)

    @LINKERS
    def test_any_memory_layout(self, graphs: Any, linker: str) -> None:
        x, *theta = mixture(np.random.default_rng(7), d=3)
        logp = graphs[f"logp False {linker}"]
        wanted = logp(x, np.empty(0), *theta)
        turned = [np.asfortranarray(v) for v in theta]
        wide = np.repeat(x, 2, axis=1)[:, ::2]
        for data in (np.asfortranarray(x), wide):
            for a, b in zip(logp(data, np.empty(0), *turned), wanted, strict=True):
                np.testing.assert_array_equal(a, b)

    @LINKERS
    @pytest.mark.parametrize("name", ["logp", "rows"])
    @pytest.mark.parametrize(
        "bad", ["indefinite", "zero", "nan", "infinite", "infinite mean", "nan mean", "nan weight"]
    )
    def test_what_is_no_mixture_has_no_density(
        self, graphs: Any, linker: str, name: str, bad: str
    ) -> None:
        x, log_weight, mean, covariance = mixture(np.random.default_rng(8))
        match bad:
            case "indefinite":
                covariance[1] = [[1.0, 2.0], [2.0, 1.0]]
            case "zero":
                covariance[1] = 0.0
            case "nan":
                covariance[1, 1, 1] = np.nan
            case "infinite":
                covariance[1, 1, 1] = np.inf
            case "infinite mean":
                mean[0, 0] = np.inf
            case "nan mean":
                mean[0, 0] = np.nan
            case "nan weight":
                log_weight[0] = np.nan
        more = (np.ones(len(x)),) if name == "rows" else ()
        value, *_ = graphs[f"{name} False {linker}"](
            x, np.empty(0), log_weight, mean, covariance, *more
        )
        assert np.isnan(value).all()

    def test_an_empty_component_is_none(self, graphs: Any) -> None:
        x, log_weight, mean, covariance = mixture(np.random.default_rng(9), k=3)
        log_weight = np.array([np.log(0.4), np.log(0.6), -np.inf])
        value, by_weight, by_mean, _ = graphs["logp False numba"](
            x, np.empty(0), log_weight, mean, covariance
        )
        kept = by_scipy(x, log_weight[:2], mean[:2], covariance[:2]).sum()
        assert value == pytest.approx(kept, rel=1e-13)
        assert by_weight[2] == 0
        assert (by_mean[2] == 0).all()

    @pytest.mark.parametrize("mode", [PYTHON, NUMBA])
    def test_pytensors_own_check(self, mode: Any) -> None:
        rng = np.random.default_rng(10)
        x, *theta = mixture(rng, n=11, k=2)

        def value(log_weight: Any, mean: Any, covariance: Any) -> Any:
            symmetric = 0.5 * (covariance + covariance.mT)
            return MixtureLogp(False)(x, np.empty(0), log_weight, mean, symmetric)[0]

        verify_grad(value, theta, rng=rng, mode=mode)

    def test_shapes(self) -> None:
        x, weight = pt.dmatrix(), pt.dvector()
        log_weight, mean, covariance = pt.dvector(), pt.dmatrix(), pt.dtensor3()
        outputs = MixtureLogp(False)(x, weight, log_weight, mean, covariance)
        rows = MixtureRows(False)(x, weight, log_weight, mean, covariance)
        shapes = pytensor.function(
            [x, weight, log_weight, mean, covariance],
            [*(o.shape for o in outputs), rows.shape],
            mode="FAST_RUN",
            on_unused_input="ignore",
        )
        assert not _ops(shapes, MixtureLogp, MixtureRows), "the shapes need no pass over the data"
        values = mixture(np.random.default_rng(11), n=7, k=3, d=2)
        found = shapes(values[0], np.empty(0), *values[1:])
        assert [tuple(s) for s in found] == [(), (3,), (3, 2), (3, 2, 2), (7,)]

    def test_refuses_other_dimensions(self) -> None:
        with pytest.raises(TypeError, match="MixtureLogp"):
            MixtureLogp(False)(pt.dvector(), *(pt.dvector(),) * 2, pt.dmatrix(), pt.dtensor3())


class TestMixtureRows:
    @LINKERS
    @DIAGONAL
    @pytest.mark.parametrize("weighted", [False, True])
    def test_value_and_pullback(
        self, graphs: Any, linker: str, diagonal: bool, weighted: bool
    ) -> None:
        rng = np.random.default_rng(12)
        x, *theta = mixture(rng, d=3, k=2, diagonal=diagonal)
        weight = rng.uniform(0.2, 3.0, size=len(x)) if weighted else np.empty(0)
        frequency = weight if weighted else np.ones(len(x))
        g = rng.normal(size=len(x))
        value, *found = graphs[f"rows {diagonal} {linker}"](x, weight, *theta, g)
        np.testing.assert_allclose(value, frequency * by_scipy(x, *theta), rtol=1e-13)
        # sum g_n w_n log p(x_n) is the log-likelihood with weights g w.
        wanted = graphs[f"logp {diagonal} {linker}"](x, g * frequency, *theta)[1:]
        for a, b in zip(found, wanted, strict=True):
            agrees(3.0 * a, b, 1e-14)

    def test_linkers_agree_to_the_bit(self, graphs: Any) -> None:
        rng = np.random.default_rng(13)
        x, *theta = mixture(rng, n=501, d=3)
        g = rng.normal(size=len(x))
        one, two = (
            graphs[f"rows False {linker}"](x, np.empty(0), *theta, g)
            for linker in ("python", "numba")
        )
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_pytensors_own_check(self) -> None:
        rng = np.random.default_rng(14)
        x, *theta = mixture(rng, n=5, k=2)

        def rows(log_weight: Any, mean: Any, covariance: Any) -> Any:
            symmetric = 0.5 * (covariance + covariance.mT)
            return MixtureRows(False)(x, np.arange(1.0, 6.0), log_weight, mean, symmetric)

        verify_grad(rows, theta, rng=rng, mode=PYTHON)


class TestRewrite:
    def _logp(self, mode: Any, total: Callable[[Any], Any]) -> Any:
        log_weight, mean, covariance = pt.dvector(), pt.dmatrix(), pt.dtensor3()
        theta = [log_weight, mean, covariance]
        value = total(MixtureRows(False)(np.ones((4, 2)), np.empty(0), *theta))
        return pytensor.function(theta, value, mode=mode)

    @pytest.mark.parametrize("mode", ["FAST_COMPILE", NUMBA])
    def test_the_sum_of_rows_is_one_pass(self, mode: str) -> None:
        function = self._logp(mode, lambda rows: rows.sum())
        assert len(_ops(function, MixtureLogp)) == 1
        assert not _ops(function, MixtureRows)

    def test_other_reductions_stay(self) -> None:
        function = self._logp("FAST_COMPILE", lambda rows: rows.max())
        assert len(_ops(function, MixtureRows)) == 1
        assert not _ops(function, MixtureLogp)

    def test_a_second_derivative_is_refused_loudly(self) -> None:
        log_weight = pt.dvector()
        rest = pt.dmatrix(), pt.dtensor3()
        for value in (
            MixtureLogp(False)(np.ones((4, 2)), np.empty(0), log_weight, *rest)[0],
            MixtureRows(False)(np.ones((4, 2)), np.empty(0), log_weight, *rest).sum(),
        ):
            first = pt.grad(value, log_weight)
            with pytest.raises(NullTypeGradError):
                pt.grad(first[0], log_weight)

    def test_data_have_no_gradient(self) -> None:
        x = pt.dmatrix()
        rest = pt.dvector(), pt.dmatrix(), pt.dtensor3()
        for value in (
            MixtureLogp(False)(x, np.empty(0), *rest)[0],
            MixtureRows(False)(x, np.empty(0), *rest).sum(),
        ):
            with pytest.raises(NullTypeGradError):
                pt.grad(value, x)


class TestConjugateTerms:
    @LINKERS
    @DIAGONAL
    @pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 2), (2, 4)])
    def test_value_and_gradient(
        self, graphs: Any, linker: str, diagonal: bool, k: int, d: int
    ) -> None:
        rng = np.random.default_rng(20 + k + d)
        mean, covariance = rng.normal(size=(k, d)), spd(rng, k, d, diagonal)
        location, scatter, g = rng.normal(size=d), spd(rng, 1, d, False)[0], rng.normal(size=k)
        rest = (location, scatter, 4.5, 0.3)
        arguments = (mean, covariance, *rest)
        value, by_mean, by_covariance = graphs[f"conjugate {diagonal} {linker}"](*arguments, g)
        np.testing.assert_allclose(value, conjugate_by_hand(*arguments), rtol=1e-12)
        agrees(by_mean, slope(lambda m: g @ conjugate_by_hand(m, covariance, *rest), mean))
        wanted = slope(lambda c: g @ conjugate_by_hand(mean, c, *rest), covariance)
        free = np.eye(d, dtype=bool) if diagonal else np.ones((d, d), dtype=bool)
        agrees(
            (by_covariance + np.swapaxes(by_covariance, 1, 2))[:, free],
            (wanted + np.swapaxes(wanted, 1, 2))[:, free],
        )

    @LINKERS
    def test_what_is_no_covariance_has_no_density(self, graphs: Any, linker: str) -> None:
        covariance = np.array([np.eye(2), [[1.0, 2.0], [2.0, 1.0]]])
        value = graphs[f"conjugate False {linker}"](
            np.zeros((2, 2)), covariance, np.zeros(2), np.eye(2), 3.0, 0.1, np.ones(2)
        )[0]
        assert np.isnan(value).all()

    def test_a_second_derivative_is_refused_loudly(self) -> None:
        mean = pt.dmatrix()
        value = ConjugateTerms(False)(
            mean, np.eye(2)[None], np.zeros(2), np.eye(2), np.float64(3), np.float64(1)
        )[0]
        first = pt.grad(value.sum(), mean)
        with pytest.raises(NullTypeGradError):
            pt.grad(first[0, 0], mean)

    def test_shapes(self) -> None:
        mean, covariance = pt.dmatrix(), pt.dtensor3()
        outputs = ConjugateTerms(False)(
            mean, covariance, np.zeros(2), np.eye(2), np.float64(3), np.float64(1)
        )
        shapes = pytensor.function([mean, covariance], [o.shape for o in outputs], mode="FAST_RUN")
        assert not _ops(shapes, ConjugateTerms)
        found = shapes(np.zeros((3, 2)), np.zeros((3, 2, 2)))
        assert [tuple(s) for s in found] == [(3,), (3, 2), (3, 2, 2)]


def _compiled_chart(chart: FamilyChart, mode: Any) -> Callable[..., Any]:
    vector, g = pt.dvector("vector"), pt.dtensor3("g")
    covariance = chart.backward(vector)
    back = chart.forward(covariance)
    slopes = pt.grad((g * covariance).sum(), vector)
    return pytensor.function([vector, g], [covariance, back, slopes], mode=mode)


def rotation(below: np.ndarray, d: int) -> np.ndarray:
    """(I - A)(I + A)^-1 of the elements of A below its diagonal."""
    a = np.zeros((d, d))
    a[np.tril_indices(d, -1)] = below
    a -= a.T
    return (np.eye(d) - a) @ np.linalg.inv(np.eye(d) + a)


def covariances_by_hand(chart: FamilyChart, vector: np.ndarray) -> np.ndarray:
    """U M diag(s) M' U, with log-volume, log-shape contrasts and M read off the vector in order.

    Of the polar families M is Cayley's rotation of what is read off.
    """
    family, k, d = chart.family, chart.k, chart.d
    rest = list(vector)

    def take(letter: str, size: int) -> np.ndarray:
        if letter == "I":
            return np.zeros((k, size))
        copies = k if letter == "V" else 1
        taken = np.array([rest.pop(0) for _ in range(copies * size)]).reshape(copies, size)
        return np.broadcast_to(taken, (k, size))

    log_volume = take(family.volume, 1)
    contrast = take(family.shape, d - 1)
    below = take(family.orientation, 0 if family.is_diagonal else d * (d - 1) // 2)
    assert not rest
    free = np.hstack([np.zeros((k, 1)), contrast])
    s = np.exp(log_volume + free - free.mean(axis=1, keepdims=True))
    m = np.tile(np.eye(d), (k, 1, 1))
    if not family.is_diagonal:
        rows, columns = np.tril_indices(d, -1)
        m[:, rows, columns] = below
    if family.is_polar:
        m = np.stack([rotation(b, d) for b in below])
    um = chart.unit[:, None] * m
    return np.einsum("kij,kj,klj->kil", um, s, um)


class TestChart:
    @pytest.mark.parametrize("k", [1, 2, 3])
    @pytest.mark.parametrize(("letters", "d"), CHARTS)
    def test_value_inverse_and_gradient(self, letters: str, d: int, k: int) -> None:
        rng = np.random.default_rng(100 * d + k)
        family = Covariance(letters)
        is_one = family.shape == "I" or family.is_polar
        unit = np.full(d, 3.0) if is_one else rng.uniform(0.5, 20.0, size=d)
        chart = FamilyChart(family, k, unit)
        assert chart.size == family.n_parameters(k, d)
        vector = 0.7 * rng.normal(size=chart.size)
        g = rng.normal(size=(k, d, d))
        covariance, back, slopes = _compiled_chart(chart, PYTHON)(vector, g)
        np.testing.assert_allclose(covariance, covariances_by_hand(chart, vector), rtol=1e-12)
        if family.is_polar:  # axes have copies, and the nearest one is found
            again = covariances_by_hand(chart, back)
            np.testing.assert_allclose(again, covariance, rtol=1e-9, atol=1e-12)
            assert np.abs(back[chart.spectrum.shape[1] :]).max(initial=0.0) < 3.0
        else:
            np.testing.assert_allclose(back, vector, rtol=1e-9, atol=1e-12)
        agrees(slopes, slope(lambda v: (g * covariances_by_hand(chart, v)).sum(), vector))
        self._is_of_the_family(family, covariance)

    def _is_of_the_family(self, family: Covariance, covariance: np.ndarray) -> None:
        d = covariance.shape[1]
        np.testing.assert_array_equal(covariance, np.swapaxes(covariance, 1, 2))
        assert (np.linalg.eigvalsh(covariance) > 0).all()
        volume = np.exp(np.linalg.slogdet(covariance)[1] / d)
        shape = covariance / volume[:, None, None]
        if family.volume == "E":
            np.testing.assert_allclose(volume, volume[0], rtol=1e-12)
        if family.shape == "I":
            np.testing.assert_allclose(shape, np.broadcast_to(np.eye(d), shape.shape), rtol=1e-12)
        if family.is_polar and family.shape == "E":
            shape_of = np.linalg.eigvalsh(shape)
            np.testing.assert_allclose(
                shape_of, np.broadcast_to(shape_of[0], shape_of.shape), rtol=1e-9
            )
        elif family.shape == "E":
            np.testing.assert_allclose(shape, np.broadcast_to(shape[0], shape.shape), rtol=1e-10)
        if family.is_diagonal:
            assert (shape[:, ~np.eye(d, dtype=bool)] == 0).all()

    @pytest.mark.parametrize("d", [2, 3, 4])
    def test_rotations_are_uniform_with_the_stated_density(self, d: int) -> None:
        """Cauchy elements, weighted: the first and second moments of uniform rotations."""
        rng = np.random.default_rng(d)
        chart = FamilyChart(Covariance("VVE"), 1, np.ones(d))
        m, n = d * (d - 1) // 2, 60_000
        drawn = rng.standard_cauchy(size=(n, m))
        log_weight, found = np.log1p(drawn**2).sum(axis=1), []
        for i, below in enumerate(drawn):
            vector = np.concatenate([np.zeros(d), below])
            _, factor, _, log_volume = chart_ops.chart(
                vector, chart.spectrum, chart.below, chart.unit, True
            )
            log_weight[i] += log_volume
            found.append(factor[0])
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        few = np.sqrt((weight**2).sum())  # Monte Carlo error of what has variance one
        m = np.array(found)
        trace = np.trace(m, axis1=1, axis2=2)
        assert abs(weight @ m[:, 0, 0]) < 5 * few
        assert abs(weight @ m[:, 0, 0] ** 2 - 1 / d) < 5 * few
        assert abs(weight @ m[:, 1, 0] ** 2 - 1 / d) < 5 * few
        # Of SO(2) the trace is 2 cos; of larger groups its square has mean 1.
        assert abs(weight @ trace**2 - (2.0 if d == 2 else 1.0)) < 10 * few

    @pytest.mark.parametrize("letters", ["VVV", "EVI", "VEV"])
    def test_linkers_agree_to_the_bit(self, letters: str) -> None:
        rng = np.random.default_rng(30)
        unit = np.full(3, 4.0) if letters in POLAR else rng.uniform(0.5, 20.0, size=3)
        chart = FamilyChart(Covariance(letters), 3, unit)
        vector, g = rng.normal(size=chart.size), rng.normal(size=(3, 3, 3))
        one, two = (_compiled_chart(chart, mode)(vector, g) for mode in (PYTHON, NUMBA))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[2], two[2])
        np.testing.assert_allclose(one[1], two[1], rtol=1e-12, atol=1e-12)

    def test_shapes(self) -> None:
        chart = FamilyChart(Covariance("VEE"), 3, np.ones(2))
        vector, g = pt.dvector(), pt.dtensor3()
        covariance = chart.backward(vector)
        assert covariance.type.shape == (3, 2, 2)
        slopes = pt.grad((g * covariance).sum(), vector)
        shapes = pytensor.function([vector, g], [covariance.shape, slopes.shape], mode="FAST_RUN")
        assert not _ops(shapes, Chart, ChartPullback)
        found = shapes(np.zeros(chart.size), np.zeros((3, 2, 2)))
        assert [tuple(s) for s in found] == [(3, 2, 2), (chart.size,)]

    def test_a_second_derivative_is_refused_loudly(self) -> None:
        chart = FamilyChart(Covariance("VVV"), 2, np.ones(2))
        vector = pt.dvector()
        first = pt.grad(chart.backward(vector).sum(), vector)
        with pytest.raises(NullTypeGradError):
            pt.grad(first[0], vector)

    def test_an_overflow_is_no_exception(self) -> None:
        chart = FamilyChart(Covariance("VVV"), 2, np.ones(2))
        covariance = chart_ops.chart(
            np.full(chart.size, 800.0), chart.spectrum, chart.below, chart.unit, False
        )[0]
        assert not np.isfinite(covariance).all()


def _ops(function: Any, *kinds: type) -> list[Any]:
    return [n for n in function.maker.fgraph.toposort() if isinstance(n.op, kinds)]
