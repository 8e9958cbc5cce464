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
    from bayesgmm.allocation.coclustering import coclustering as coclustering
    from bayesgmm.allocation.partition import Partition as Partition
    from bayesgmm.allocation.partition import partition as partition
    from bayesgmm.allocation.responsibilities import responsibilities as responsibilities
    from bayesgmm.covariance import Covariance as Covariance
    from bayesgmm.display.comparison import compare as compare
    from bayesgmm.display.forest import plot_compare as plot_compare
    from bayesgmm.display.page import report as report
    from bayesgmm.display.plots import plot_density as plot_density
    from bayesgmm.display.plots_em import plot_convergence as plot_convergence
    from bayesgmm.display.plots_em import plot_select as plot_select
    from bayesgmm.display.plots_labels import plot_labels as plot_labels
    from bayesgmm.display.plots_posterior import plot_coclustering as plot_coclustering
    from bayesgmm.display.plots_posterior import plot_responsibilities as plot_responsibilities
    from bayesgmm.display.plots_prior import plot_prior as plot_prior
    from bayesgmm.display.words import format_table as format_table
    from bayesgmm.display.words import to_frame as to_frame
    from bayesgmm.em.fit import fit_em as fit_em
    from bayesgmm.evidence.evidence import log_marginal_likelihood as log_marginal_likelihood
    from bayesgmm.evidence.loo import loo as loo
    from bayesgmm.evidence.loo import loo_pit as loo_pit
    from bayesgmm.evidence.sensitivity import sensitivity as sensitivity
    from bayesgmm.inference.delta import derived as derived
    from bayesgmm.inference.delta import vcov as vcov
    from bayesgmm.inference.lrt import bootstrap_lrt as bootstrap_lrt
    from bayesgmm.inference.profiling import profile as profile
    from bayesgmm.inference.resampling import bootstrap as bootstrap
    from bayesgmm.inference.resampling import jackknife as jackknife
    from bayesgmm.inference.resampling import percentile_intervals as percentile_intervals
    from bayesgmm.inference.resampling import standard_errors as standard_errors
    from bayesgmm.inference.selection import Selection as Selection
    from bayesgmm.inference.selection import select as select
    from bayesgmm.labelling.diagnosis import diagnose as diagnose
    from bayesgmm.labelling.relabel import align as align
    from bayesgmm.mixture import GaussianMixture as GaussianMixture
    from bayesgmm.moments import Parameters as Parameters
    from bayesgmm.posterior.bayes import recover as recover
    from bayesgmm.posterior.bayes import sample_posterior as sample_posterior
    from bayesgmm.posterior.imported import from_draws as from_draws
    from bayesgmm.posterior.laplace import fit_laplace as fit_laplace
    from bayesgmm.posterior.model import to_pymc as to_pymc
    from bayesgmm.posterior.modes import combine_modes as combine_modes
    from bayesgmm.posterior.modes import mode as mode
    from bayesgmm.prediction.assignment import predict as predict
    from bayesgmm.prediction.assignment import predict_proba as predict_proba
    from bayesgmm.prediction.assignment import score as score
    from bayesgmm.prediction.assignment import simulate as simulate
    from bayesgmm.prediction.conditioning import conditional as conditional
    from bayesgmm.prediction.conditioning import marginal as marginal
    from bayesgmm.prediction.conditioning import regress as regress
    from bayesgmm.predictive.density import predictive_density as predictive_density
    from bayesgmm.predictive.replicated import posterior_predictive as posterior_predictive
    from bayesgmm.prior import ConjugatePrior as ConjugatePrior
    from bayesgmm.prior import HalfNormal as HalfNormal
    from bayesgmm.prior import HierarchicalInverseGamma as HierarchicalInverseGamma
    from bayesgmm.prior import InverseGamma as InverseGamma
    from bayesgmm.prior import LogNormal as LogNormal
    from bayesgmm.prior import SeparationPrior as SeparationPrior
    from bayesgmm.priors.prior_draws import prior_predictive as prior_predictive
    from bayesgmm.priors.prior_summary import PriorSummary as PriorSummary
    from bayesgmm.priors.prior_summary import prior_summary as prior_summary
    from bayesgmm.rows import summary as summary
    from bayesgmm.tree import load as load
    from bayesgmm.tree import save as save

_WHERE = {
    "ConjugatePrior": "prior",
    "Covariance": "covariance",
    "GaussianMixture": "mixture",
    "HalfNormal": "prior",
    "HierarchicalInverseGamma": "prior",
    "InverseGamma": "prior",
    "LogNormal": "prior",
    "Parameters": "moments",
    "Partition": "allocation.partition",
    "PriorSummary": "priors.prior_summary",
    "Selection": "inference.selection",
    "SeparationPrior": "prior",
    "align": "labelling.relabel",
    "bootstrap": "inference.resampling",
    "bootstrap_lrt": "inference.lrt",
    "coclustering": "allocation.coclustering",
    "combine_modes": "posterior.modes",
    "compare": "display.comparison",
    "conditional": "prediction.conditioning",
    "derived": "inference.delta",
    "diagnose": "labelling.diagnosis",
    "fit_em": "em.fit",
    "fit_laplace": "posterior.laplace",
    "format_table": "display.words",
    "from_draws": "posterior.imported",
    "jackknife": "inference.resampling",
    "load": "tree",
    "log_marginal_likelihood": "evidence.evidence",
    "loo": "evidence.loo",
    "loo_pit": "evidence.loo",
    "marginal": "prediction.conditioning",
    "mode": "posterior.modes",
    "partition": "allocation.partition",
    "percentile_intervals": "inference.resampling",
    "plot_coclustering": "display.plots_posterior",
    "plot_compare": "display.forest",
    "plot_convergence": "display.plots_em",
    "plot_density": "display.plots",
    "plot_labels": "display.plots_labels",
    "plot_prior": "display.plots_prior",
    "plot_responsibilities": "display.plots_posterior",
    "plot_select": "display.plots_em",
    "posterior_predictive": "predictive.replicated",
    "predict": "prediction.assignment",
    "predict_proba": "prediction.assignment",
    "predictive_density": "predictive.density",
    "prior_predictive": "priors.prior_draws",
    "prior_summary": "priors.prior_summary",
    "profile": "inference.profiling",
    "recover": "posterior.bayes",
    "regress": "prediction.conditioning",
    "report": "display.page",
    "responsibilities": "allocation.responsibilities",
    "sample_posterior": "posterior.bayes",
    "save": "tree",
    "score": "prediction.assignment",
    "select": "inference.selection",
    "sensitivity": "evidence.sensitivity",
    "simulate": "prediction.assignment",
    "standard_errors": "inference.resampling",
    "summary": "rows",
    "to_frame": "display.words",
    "to_pymc": "posterior.model",
    "vcov": "inference.delta",
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
