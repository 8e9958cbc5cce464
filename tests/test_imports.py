"""What is loaded when: nothing of PyMC, ArviZ or Matplotlib before it is needed; which way.

In processes of their own, where nothing else has imported anything.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bayesgmm

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

    assert bayesgmm.__version__ == version("bayesgmm")


# The order of docs/design.md: folders, and modules that lie at the top.
ORDER = (
    *("errors", "checks", "arguments", "files", "progress", "streams"),
    *("numeric", "covariance", "prior", "mixture", "moments", "groups", "noise", "labels"),
    *("labelfree", "data", "resolved", "tree", "ambiguity", "rows", "prediction"),
    *("allocation", "predictive", "information", "em", "target", "priors", "evidence"),
    *("posterior", "inference", "labelling"),
    *("display", "datasets", "sklearn", "terminal", "cli"),
)


def imported(path: Path) -> set[str]:
    """What a module imports of the package, as names with dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bayesgmm"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_one_way():
    """Between folders in the order of the design; within a folder there is no circle."""
    root = Path(bayesgmm.__file__).parent
    within: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("__init__",):
            continue
        own = parts[0]
        for name in imported(path):
            other, *rest = name.split(".")[1:]
            if not (root / other).exists() and not (root / f"{other}.py").exists():
                continue  # a public name: the command line's, which is last
            assert ORDER.index(other) <= ORDER.index(own), f"{path.name} imports {name}"
            if other == own and rest:
                within.setdefault(".".join(parts), set()).add(f"{other}.{rest[0]}")
    TopologicalSorter(within).prepare()  # raises where there is a circle
