"""What is loaded when: nothing of PyMC, ArviZ or Matplotlib before it is needed.

In processes of their own, where nothing else has imported anything.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("pymc", "pytensor", "nutpie", "arviz", "arviz_stats", "arviz_plots", "matplotlib")


def loaded_by(code: str, *options: str) -> list[str]:
    """The heavy packages that are loaded after ``code``."""
    report = f"import sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, *options, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if not k.startswith("COV_")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


SPEC = "import bayesgmm as bg\nspec = bg.GaussianMixture(2, 'VVV', 'separation')\n"
FIT = SPEC + (
    "X = bg.datasets.load('faithful')\n"
    "fit = bg.fit_em(spec, X, random_seed=1, n_starts=2)\n"
    "assert abs(float(fit['criteria']['loglik']) + 1130.2639601847) < 1e-7\n"
)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import bayesgmm", id="import"),
        pytest.param("import bayesgmm; dir(bayesgmm)", id="dir"),
        pytest.param(SPEC + "bg.GaussianMixture.from_json(spec.to_json())", id="specification"),
        pytest.param(FIT, id="fit by EM"),
        pytest.param(
            FIT + "bg.fit_em(bg.GaussianMixture(2), X, start=fit, estimate='map')", id="MAP"
        ),
    ],
)
def test_em_loads_nothing_heavy(code):
    assert loaded_by(code, "-W", "error") == []


def test_sampling_loads_no_pymc() -> None:
    """Nor PyTensor: nothing waits for a graph to be compiled."""
    code = FIT + (
        "import warnings\nwarnings.simplefilter('ignore')\n"
        "bg.sample_posterior(spec, X, mle=fit, draws=20, tune=40, chains=2, progressbar=False)\n"
    )
    assert not {"pymc", "pytensor"} & set(loaded_by(code))


def test_importing_alone_loads_no_numerical_package():
    """NumPy and the rest come with the first name that is used."""
    code = (
        "import bayesgmm\nimport sys\nassert not {'numba', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    assert loaded_by(code) == []


def test_without_assertions_and_docstrings_it_still_works():
    assert loaded_by(FIT, "-OO") == []


def test_every_public_name_is_there():
    names = "import bayesgmm as bg\nassert {'GaussianMixture', 'fit_em'} < set(bg.__all__)\n"
    listed = "assert set(bg.__all__) <= set(dir(bg))\n"
    missing = "try:\n    bg.nothing\nexcept AttributeError as e:\n    assert 'nothing' in str(e)\n"
    assert loaded_by(names + listed + missing) == []


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    import bayesgmm

    assert bayesgmm.__version__ == version("bayesgmm")
