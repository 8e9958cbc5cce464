"""Gaussian mixtures written down once: by EM, by NUTS, and compared honestly.

>>> import bayesgmm as bg
>>> X = bg.datasets.load("faithful")
>>> spec = bg.GaussianMixture(n_components=2, covariance="VVV")
>>> mle = bg.fit_em(spec, X, random_seed=1)
>>> round(float(mle["criteria"]["loglik"]), 4)
-1130.264

Everything is loaded when first used: PyMC, ArviZ and Matplotlib only by what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesgmm import datasets as datasets
    from bayesgmm.bayes import sample_posterior as sample_posterior
    from bayesgmm.comparison import compare as compare
    from bayesgmm.comparison import format_table as format_table
    from bayesgmm.comparison import to_frame as to_frame
    from bayesgmm.conditioning import conditional as conditional
    from bayesgmm.conditioning import marginal as marginal
    from bayesgmm.conditioning import regress as regress
    from bayesgmm.covariance import Covariance as Covariance
    from bayesgmm.delta import derived as derived
    from bayesgmm.delta import vcov as vcov
    from bayesgmm.fit import fit_em as fit_em
    from bayesgmm.forest import plot_compare as plot_compare
    from bayesgmm.laplace import fit_laplace as fit_laplace
    from bayesgmm.lrt import bootstrap_lrt as bootstrap_lrt
    from bayesgmm.mixture import GaussianMixture as GaussianMixture
    from bayesgmm.model import to_pymc as to_pymc
    from bayesgmm.moments import Parameters as Parameters
    from bayesgmm.page import report as report
    from bayesgmm.plots import plot_density as plot_density
    from bayesgmm.plots_em import plot_convergence as plot_convergence
    from bayesgmm.plots_em import plot_select as plot_select
    from bayesgmm.prediction import predict as predict
    from bayesgmm.prediction import predict_proba as predict_proba
    from bayesgmm.prediction import score as score
    from bayesgmm.prediction import simulate as simulate
    from bayesgmm.prior import ConjugatePrior as ConjugatePrior
    from bayesgmm.prior import HalfNormal as HalfNormal
    from bayesgmm.prior import InverseGamma as InverseGamma
    from bayesgmm.prior import LogNormal as LogNormal
    from bayesgmm.prior import SeparationPrior as SeparationPrior
    from bayesgmm.profiling import profile as profile
    from bayesgmm.resampling import bootstrap as bootstrap
    from bayesgmm.resampling import jackknife as jackknife
    from bayesgmm.resampling import percentile_intervals as percentile_intervals
    from bayesgmm.resampling import standard_errors as standard_errors
    from bayesgmm.rows import summary as summary
    from bayesgmm.selection import Selection as Selection
    from bayesgmm.selection import select as select
    from bayesgmm.tree import load as load
    from bayesgmm.tree import save as save

_WHERE = {
    "ConjugatePrior": "prior",
    "Covariance": "covariance",
    "GaussianMixture": "mixture",
    "HalfNormal": "prior",
    "InverseGamma": "prior",
    "LogNormal": "prior",
    "Parameters": "moments",
    "Selection": "selection",
    "SeparationPrior": "prior",
    "bootstrap": "resampling",
    "bootstrap_lrt": "lrt",
    "compare": "comparison",
    "conditional": "conditioning",
    "derived": "delta",
    "fit_em": "fit",
    "fit_laplace": "laplace",
    "format_table": "comparison",
    "jackknife": "resampling",
    "load": "tree",
    "marginal": "conditioning",
    "percentile_intervals": "resampling",
    "plot_compare": "forest",
    "plot_convergence": "plots_em",
    "plot_density": "plots",
    "plot_select": "plots_em",
    "predict": "prediction",
    "predict_proba": "prediction",
    "profile": "profiling",
    "regress": "conditioning",
    "report": "page",
    "sample_posterior": "bayes",
    "save": "tree",
    "score": "prediction",
    "select": "selection",
    "simulate": "prediction",
    "standard_errors": "resampling",
    "summary": "rows",
    "to_frame": "comparison",
    "to_pymc": "model",
    "vcov": "delta",
}
_MODULES = ("datasets", "errors")

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"bayesgmm.{name}")
    if name in _WHERE:
        value = getattr(import_module(f"bayesgmm.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    if name == "__version__":
        return import_module("importlib.metadata").version("bayesgmm")
    raise AttributeError(f"module 'bayesgmm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
