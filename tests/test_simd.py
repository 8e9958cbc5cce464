"""Vector code: its functions against Decimal, its variants against NumPy's definition."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bayesgmm.moments import UNWEIGHTED, Parameters, accumulate, accumulate_plain
from bayesgmm.numeric import onepass
from bayesgmm.numeric.simd import LANES, Code


def elementwise(write):
    """A function of an array, from what is written for one vector."""
    code = Code("elementwise", ("n",), ("x", "out"))
    (n,), (x, out) = code.integers, code.arrays
    with code.loop(0, n, LANES) as i:
        out.store(i, write(code, x.load(i)))
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)(
        code.compile()
    )

    def call(values):
        x = np.zeros(-(-len(values) // LANES) * LANES)
        x[: len(values)] = values
        out = np.empty_like(x)
        function(len(x), x.ctypes.data, out.ctypes.data)
        return out[: len(values)]

    return call


exp = elementwise(lambda code, x: code.exp(x))
log = elementwise(lambda code, x: code.log(x))


def decimal(function, x):
    with localcontext(prec=40):
        return getattr(Decimal(float(x)), function)()


@settings(deadline=None, max_examples=300)
@given(x=st.floats(-707.9, 0.0))
def test_exp_is_right_to_one_ulp(x):
    exact = decimal("exp", x)
    assert abs(Decimal(float(exp([x])[0])) - exact) <= Decimal(np.spacing(float(exact)))


def test_exp_ends_in_exact_zeros():
    assert exp([0.0])[0] == 1.0
    assert (exp([-708.0, -745.0, -1e10, -1e300, -np.inf]) == 0.0).all()
    assert exp([-707.99])[0] > 0.0


@settings(deadline=None, max_examples=300)
@given(x=st.floats(1e-300, 1e300))
def test_log_is_right_to_one_ulp_of_the_larger_of_one_and_itself(x):
    exact = decimal("ln", x)
    unit = Decimal(np.spacing(max(1.0, abs(float(exact)))))
    assert abs(Decimal(float(log([x])[0])) - exact) <= unit


def test_log_of_one_and_of_zero():
    assert log([1.0])[0] == 0.0
    assert log([0.0])[0] == -np.inf


def problem(n, d, k, *, distance, diagonal, seed=0):
    rng = np.random.default_rng(seed)
    mean = distance * rng.normal(size=(k, d))
    x = mean[rng.integers(k, size=n)] + rng.normal(size=(n, d))
    factor = np.eye(d) * rng.uniform(0.5, 2.0, size=(k, 1, d))
    if not diagonal:
        factor += np.tril(rng.normal(size=(k, d, d)), -1) / np.sqrt(d)
    covariance = factor @ factor.transpose(0, 2, 1)
    return rng, x, Parameters(rng.dirichlet(np.full(k, 5.0)), mean, covariance)


def assert_is_the_definition(x, parameters, weight=UNWEIGHTED, *, diagonal=False):
    got = accumulate(x, parameters, weight, diagonal=diagonal)
    want = accumulate_plain(x, parameters, weight)
    second = want.second * np.eye(parameters.d) if diagonal else want.second
    assert_allclose(got.loglik, want.loglik, rtol=1e-13)
    for a, b in (
        (got.weight_count, want.weight_count),
        (got.first, want.first),
        (got.second, second),
    ):
        assert_allclose(a, b, rtol=1e-11, atol=1e-13 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("distance", [0.3, 6.0], ids=["overlapping", "apart"])
@pytest.mark.parametrize("d", [*range(1, 14), 19, 33])
def test_every_number_of_features_has_the_definitions_sums(d, distance, diagonal):
    """All that is unrolled, all remainders; apart, most rows count for one component only."""
    rng, x, parameters = problem(700, d, 4, distance=distance, diagonal=diagonal)
    assert_is_the_definition(x, parameters, diagonal=diagonal)
    assert_is_the_definition(x, parameters, rng.uniform(0, 3, len(x)), diagonal=diagonal)


@pytest.mark.parametrize("d", [2, 6, 11])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 127, 129, 255, 256, 257, 289])
def test_blocks_that_are_not_full(n, d):
    rng, x, parameters = problem(n, d, 3, distance=2.0, diagonal=False)
    assert_is_the_definition(x, parameters)
    assert_is_the_definition(x, parameters, rng.uniform(0, 3, n))


@pytest.mark.parametrize(("d", "k"), [(2, 70), (40, 60)])
def test_many_components(d, k):
    """The blocks get smaller, and one logarithm serves rows with sums up to k."""
    _, x, parameters = problem(900, d, k, distance=0.5, diagonal=False)
    assert_is_the_definition(x, parameters)


def test_a_component_that_no_row_belongs_to():
    _, x, parameters = problem(300, 12, 3, distance=1.0, diagonal=False)
    far = parameters.mean.copy()
    far[1] += 1e3
    got = accumulate(x, Parameters(parameters.weight, far, parameters.covariance))
    assert got.weight_count[1] == 0.0
    assert (got.first[1] == 0.0).all()
    assert (got.second[1] == 0.0).all()
    want = accumulate_plain(x, Parameters(parameters.weight, far, parameters.covariance))
    assert_allclose(got.loglik, want.loglik, rtol=1e-13)
    assert_allclose(got.second, want.second, rtol=1e-11, atol=1e-11)


def test_the_narrow_code_gives_the_same_sums():
    """What machines without AVX-512 run, on this one."""
    script = """
        import numpy as np
        from llvmlite import binding
        found = binding.get_host_cpu_features()
        binding.get_host_cpu_features = lambda: type(found)(
            {name: has and "avx512" not in name for name, has in found.items()}
        )
        binding.get_host_cpu_name = lambda: ""
        from bayesgmm.numeric import simd
        assert simd.LANES == 4
        from tests.test_simd import assert_is_the_definition, problem
        for d in range(1, 12):
            for diagonal in (False, True):
                for distance in (0.3, 6.0):
                    rng, x, parameters = problem(300, d, 3, distance=distance, diagonal=diagonal)
                    assert_is_the_definition(x, parameters, diagonal=diagonal)
                    assert_is_the_definition(
                        x, parameters, rng.uniform(0, 3, len(x)), diagonal=diagonal
                    )
        print("same")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "same", done.stderr


def test_the_first_call_may_come_from_many_threads_at_once():
    """Each variant is compiled once, by whoever is first; the others wait for it."""
    script = """
        import threading
        from bayesgmm.numeric import onepass
        from tests.test_simd import problem, accumulate
        compiled = []
        original = onepass._compile
        onepass._compile = lambda variant: compiled.append(variant) or original(variant)
        _, x, parameters = problem(100, 7, 2, distance=1.0, diagonal=False)
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(accumulate(x, parameters).loglik))
            for _ in range(8)
        ]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(len(set(results)), len(compiled))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_what_cannot_be_compiled_is_not_a_number(monkeypatch):
    variant = len(onepass._FIRST) - 1
    out = np.zeros(1)
    messages = []
    monkeypatch.setattr(onepass, "_compile", lambda variant: 1 / 0)
    monkeypatch.setattr(sys, "unraisablehook", messages.append)
    pointers = [0] * len(onepass._ARRAYS)
    pointers[onepass._ARRAYS.index("out")] = out.ctypes.data
    onepass._FIRST[variant](*[0] * len(onepass._INTEGERS), *pointers)
    assert np.isnan(out[0])
    assert messages[0].exc_type is ZeroDivisionError


def test_a_forked_process_makes_threads_of_its_own():
    script = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: what is tested
        from tests.test_simd import problem, accumulate
        _, x, parameters = problem(100_000, 2, 2, distance=1.0, diagonal=False)
        before = accumulate(x, parameters, threads=2).loglik
        child = os.fork()
        if child == 0:
            os._exit(0 if accumulate(x, parameters, threads=2).loglik == before else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "0", done.stderr
