"""Which family and how many components: a table of fits with their criteria.

Fits help each other to their maxima: of two families of which one is a special case of the other,
the larger also starts from the smaller one's solution (as in `fit_em`, but each is searched once);
where one component more did not raise the log-likelihood, the fit is made again from all splits of
the solution with one less.  So the table does not prefer a family because of a bad start.

References
----------
Schwarz (1978), Ann. Statist. 6, 461-464 (BIC).  Akaike (1974), IEEE Trans. Autom. Control 19,
716-723 (AIC).  Biernacki, Celeux & Govaert (2000), IEEE Trans. Pattern Anal. Mach. Intell. 22,
719-725 (ICL).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from bayesgmm import tree
from bayesgmm.arguments import whole_number
from bayesgmm.checks import Verdict, warn
from bayesgmm.covariance import FAMILIES, ONE_DIMENSIONAL, Covariance
from bayesgmm.data.cells import Missing
from bayesgmm.data.mixing import refuse_unresolved
from bayesgmm.data.observations import read
from bayesgmm.data.table import once
from bayesgmm.em.fit import fit_em, seed_of
from bayesgmm.em.moves import splits
from bayesgmm.em.search import Solutions
from bayesgmm.errors import ArgumentError, BayesgmmWarning, DataError, FitWarning, NumericalError
from bayesgmm.inference.replicates import data_of
from bayesgmm.information.fixed import is_for_any_size, read_fixed
from bayesgmm.mixture import GaussianMixture
from bayesgmm.progress import is_wanted

Criterion = Literal["bic", "icl", "aic"]
CRITERIA: tuple[str, ...] = get_args(Criterion)
Key = tuple[str, int]
Fits = dict[Key, xr.DataTree]

_NUMBERS = ("loglik", "n_params", "aic", "bic", "icl")
# Relative to a log-likelihood, what two searches for one maximum may differ by.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Fits of several specifications to the same data.

    Parameters
    ----------
    table : DataFrame
        Indexed by ``covariance`` (letters) and ``n_components``; columns ``loglik, n_params, aic,
        bic, icl`` (smaller is better), ``status`` of the fit's verdict, and ``reason``: what is
        not ok, or why there is no fit. The best by ``criterion`` first; fits that failed and
        specifications without a fit last.
    fits : mapping
        ``fits["VVV", 2]`` is the fit, as from `fit_em`; what could not be fitted is missing.
    criterion : {"bic", "icl", "aic"}
    """

    table: pd.DataFrame
    fits: Mapping[Key, xr.DataTree]
    criterion: str

    @property
    def best(self) -> xr.DataTree:
        """The fit with the smallest ``criterion``; see `best_by`."""
        return self.best_by(self.criterion)

    def best_by(self, criterion: str) -> xr.DataTree:
        """Return the fit with the smallest value of a criterion, of those that did not fail.

        Raises
        ------
        ArgumentError
            If the criterion is unknown.
        NumericalError
            If all failed.
        """
        good = self.table[self.table["status"] != "fail"]
        if good.empty:
            raise NumericalError(
                f"none of the {len(self.table)} specifications has a fit that can be relied on; "
                "the table gives the reasons"
            )
        key: Any = good[_known(criterion)].idxmin()
        return self.fits[key]

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table.to_html()


def select(
    X: Any,
    *,
    n_components: int | Iterable[int] = range(1, 10),
    covariance: str | Covariance | Iterable[str | Covariance] = "all",
    criterion: Criterion = "bic",
    prior: Any = "conjugate",
    noise: Any = False,
    sample_weight: Any = None,
    fixed: Mapping[str, Any] | None = None,
    columns: Any = None,
    missing: Missing = "error",
    labels: Any = None,
    n_starts: int = 40,
    cores: int = 1,
    threads: int | None = None,
    random_seed: int | None = None,
    progressbar: bool | None = None,
) -> Selection:
    r"""Fit mixtures of several families and sizes by maximum likelihood, and tabulate criteria.

    .. math:: \mathrm{AIC} = -2 \ell + 2 p, \quad \mathrm{BIC} = -2 \ell + p \log N, \quad
              \mathrm{ICL} = \mathrm{BIC} - 2 \sum_n w_n \log \max_k r_{nk}

    Parameters
    ----------
    X : table (n, d)
    n_components : int or iterable of int
    covariance : family or iterable of families
        Letters or aliases; ``"all"``: the fourteen families, or E and V for one column.
    criterion : {"bic", "icl", "aic"}
        By which the table is sorted and ``best`` is chosen.
    prior : optional
        Of the specifications, for what is done with the fits later; it does not act here.
    noise : bool, "columns" or float
        Whether all of them have a noise component; see `GaussianMixture`.
    sample_weight, columns, missing, n_starts, threads : optional
        As in `fit_em`.
    fixed : mapping, optional
        As in `fit_em`: ``{"weight": "equal"}`` for any numbers of components, arrays for one.
    labels : (n,) or (n, k), optional
        As in `fit_em`: integers for numbers of components above the largest label, probabilities
        for one number.
    cores : int
        Processes, which take one number of components at a time; each needs some seconds to begin.
        The result does not depend on it.
    random_seed : int, optional
        Same seed, same bits.
    progressbar : bool, optional
        Default: in a terminal. Ctrl-C keeps the fits that are finished.

    Returns
    -------
    Selection
        ``table``, ``fits``, ``best``. What could not be fitted is in the table, with the reason.

    Raises
    ------
    DataError, ArgumentError
        For bad input, naming it.

    Warns
    -----
    DataWarning
        As `fit_em`, once.
    FitWarning
        If the best fit should not be trusted, or all failed.
    """
    _known(criterion)
    whole_number("cores", cores, least=1)
    about: dict[str, Any] = {"sample_weight": sample_weight, "columns": columns, "missing": missing}
    X = once(X)
    d = read(X, **about).d
    families, sizes = _families(covariance, d), _sizes(n_components)
    _check_labels(labels, sizes)
    _check_fixed(fixed, families, sizes, d)
    seed = seed_of(random_seed)
    options = about | {
        "fixed": fixed,
        "labels": labels,
        "n_starts": n_starts,
        "threads": threads,
        "random_seed": seed,
        "progressbar": False,
    }
    grid = [GaussianMixture(k, f, prior, noise) for k in sizes for f in families]
    found, failed = _all(X, grid, options, cores, progressbar)
    is_complete = len(found) + len(failed) == len(grid)
    if is_complete and fixed is None:  # else one size may be no special case of the next
        is_complete = _grow(X, grid, found, options)
    if not found and not is_complete:
        raise KeyboardInterrupt
    _share_data(found)
    table = _table(grid, found, failed, criterion, d)
    table.attrs = {
        "criterion": criterion,
        "random_seed": seed,
        "stop_reason": "completed" if is_complete else "interrupted",
    }
    selection = Selection(table, found, criterion)
    if (table["status"] != "fail").any():
        warn(Verdict.from_json(str(selection.best.attrs["verdict"])), FitWarning)
    else:
        message = "every specification failed; the table gives the reasons"
        warnings.warn(FitWarning("nothing-selected", message), stacklevel=2)
    return selection


def _known(criterion: str) -> str:
    if criterion not in CRITERIA:
        known = ", ".join(map(repr, CRITERIA))
        raise ArgumentError("criterion", f"must be one of {known}, not {criterion!r}")
    return criterion


def _families(covariance: Any, d: int) -> list[Covariance]:
    """Return the families, each once, special cases before what they are special cases of."""
    if isinstance(covariance, str) and covariance == "all":
        covariance = FAMILIES if d > 1 else ONE_DIMENSIONAL
    given = [covariance] if isinstance(covariance, str | Covariance) else list(covariance)
    families = dict.fromkeys(f if isinstance(f, Covariance) else Covariance(f) for f in given)
    if not families:
        raise ArgumentError("covariance", "is empty; give at least one family")
    if d > 1 and any(f.is_one_dimensional for f in families):
        raise ArgumentError("covariance", f"E and V are for one column, X has {d}")
    return sorted(families, key=lambda f: sum("IEV".index(letter) for letter in f.letters))


def _sizes(n_components: Any) -> list[int]:
    given = n_components if isinstance(n_components, Iterable) else [n_components]
    sizes = sorted({whole_number("n_components", k, least=1) for k in given})
    if not sizes:
        raise ArgumentError("n_components", "is empty; give at least one number")
    return sizes


def _check_labels(labels: Any, sizes: list[int]) -> None:
    """Refuse labels that are not for all sizes; what else is wrong with them is said in `read`."""
    if labels is None:
        return
    if np.ndim(labels) == 2:
        if sizes != [np.shape(labels)[1]]:
            raise ArgumentError(
                "n_components",
                f"must be {np.shape(labels)[1]} alone: labels are probabilities of so many",
            )
        return
    number = pd.to_numeric(pd.Series(np.asarray(labels).ravel()), errors="coerce")
    most = number.max()
    if np.isfinite(most) and most >= sizes[0]:
        raise ArgumentError(
            "n_components", f"must be at least {most + 1:g}: labels name component {most:g}"
        )


def _check_fixed(fixed: Any, families: list[Covariance], sizes: list[int], d: int) -> None:
    if fixed is None:
        return
    if len(sizes) > 1 and not is_for_any_size(fixed):
        raise ArgumentError(
            "fixed",
            "arrays are for one number of components; give n_components=K, or fix {'weight': "
            "'equal'} alone",
        )
    for family in families:
        read_fixed(fixed, family, sizes[0], d)


# The fits


def _all(
    X: Any,
    grid: list[GaussianMixture],
    options: dict[str, Any],
    cores: int,
    progressbar: bool | None,
) -> tuple[Fits, dict[Key, str]]:
    """Return fits, and the reasons where there are none; after Ctrl-C, those that are finished."""
    by_size: dict[int, list[GaussianMixture]] = {}
    for spec in grid:
        by_size.setdefault(spec.n_components, []).append(spec)
    found: Fits = {}
    failed: dict[Key, str] = {}

    def keep(results: Iterable[tuple[Key, xr.DataTree | str]]) -> None:
        for key, result in results:
            if isinstance(result, str):
                failed[key] = result
            else:
                found[key] = result

    try:
        if cores == 1:
            each = (one for specs in by_size.values() for one in _of_one_size(X, specs, options))
            keep(_track(each, len(grid), progressbar))
        else:
            joblib = import_module("joblib")  # its processes need no main guard
            pool = joblib.Parallel(cores, return_as="generator_unordered")
            tasks = (joblib.delayed(_in_a_list)(X, s, options) for s in by_size.values())
            for results in _track(pool(tasks), len(by_size), progressbar):
                keep(results)
    except KeyboardInterrupt:
        pass  # the caller sees what is missing
    order = {_key(spec): i for i, spec in enumerate(grid)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]])), failed


def _of_one_size(
    X: Any, specs: list[GaussianMixture], options: dict[str, Any]
) -> Iterator[tuple[Key, xr.DataTree | str]]:
    """Yield the fits of one number of components, special cases first, whose solutions go on."""
    solutions = Solutions()
    for spec in specs:
        try:
            yield _key(spec), _fit(spec, X, start=solutions, **options)
        except (DataError, NumericalError) as error:
            yield _key(spec), str(error).split("\n")[0]


def _in_a_list(*arguments: Any) -> list[tuple[Key, xr.DataTree | str]]:
    return list(_of_one_size(*arguments))


def _fit(spec: GaussianMixture, X: Any, **options: Any) -> xr.DataTree:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BayesgmmWarning)  # each fit's verdict is in the table
        fit = fit_em(spec, X, **options)
    if fit.attrs["stop_reason"] == "interrupted":
        raise KeyboardInterrupt
    return fit


def _grow(X: Any, grid: list[GaussianMixture], found: Fits, options: dict[str, Any]) -> bool:
    """Fit again what is lower than a special case: one component less, or a family nested in it.

    Return False after Ctrl-C.
    """
    for spec in grid:
        own = found.get(_key(spec))
        if own is None or not _is_start(own):
            continue
        begins: list[Any] = []
        smaller = found.get((spec.covariance.letters, spec.n_components - 1))
        if smaller is not None and _is_lower(own, smaller) and _is_start(smaller):
            data = data_of(smaller)
            halves = splits(data.to_anchored(tree.point(smaller)), spec.covariance)
            begins += [data.to_data_units(p) for p in halves]
        beside = [Covariance(f) for f, k in found if k == spec.n_components]
        for family in spec.covariance.nested_among(beside):  # raised by this, maybe
            special = found[family.letters, spec.n_components]
            begins += [special] if _is_lower(own, special) and _is_start(special) else []
        if begins:
            try:
                again = _fit(spec, X, start=[own, *begins], **options)
            except KeyboardInterrupt:
                return False
            # Where EM leads from all of them into singularities, there is nothing new.
            found[_key(spec)] = again if _is_lower(own, again) else own
    return True


def _is_lower(fit: xr.DataTree, special: xr.DataTree) -> bool:
    """Whether a fit is lower than that of a special case, by more than two searches may differ."""
    least = _loglik(special)
    return _loglik(fit) < least - _ROUNDING * abs(least)


def _is_start(fit: xr.DataTree) -> bool:
    """Whether its covariances, as they are stored, are good enough to start from."""
    try:
        refuse_unresolved(tree.point(fit).covariance)
    except ArgumentError:
        return False
    return True


def _loglik(fit: xr.DataTree) -> float:
    return float(fit["criteria"]["loglik"].item())


def _key(spec: GaussianMixture) -> Key:
    return spec.covariance.letters, spec.n_components


def _share_data(found: Fits) -> None:
    """Let all fits hold the same copy of the data."""
    first = next(iter(found.values()), None)
    for fit in found.values():
        fit["observed_data"] = xr.DataTree(first["observed_data"].to_dataset())  # type: ignore[index]


def _track(items: Iterable[Any], total: int, progressbar: bool | None) -> Iterable[Any]:
    if not is_wanted(progressbar) or total < 2:
        return items
    from rich.progress import track

    return track(items, description="fits", total=total, transient=True)


# The table


def _table(
    grid: list[GaussianMixture], found: Fits, failed: dict[Key, str], criterion: str, d: int
) -> pd.DataFrame:
    rows = []
    for spec in grid:
        key = _key(spec)
        row = dict.fromkeys(_NUMBERS, np.nan) | {"n_params": spec.n_parameters(d)}
        if key in found:
            verdict = Verdict.from_json(str(found[key].attrs["verdict"]))
            numbers = found[key]["criteria"].to_dataset()
            row |= {name: numbers[name].item() for name in _NUMBERS}
            status, reason = verdict.status, ", ".join(c.code for c in verdict.troubles)
        elif key in failed:
            status, reason = "fail", failed[key]
        else:  # interrupted before
            continue
        rows.append((*key, *row.values(), status, reason))
    names = ["covariance", "n_components", *_NUMBERS, "status", "reason"]
    table = pd.DataFrame(rows, columns=names).set_index(names[:2])
    table["is_bad"] = table["status"] == "fail"
    return table.sort_values(["is_bad", criterion], kind="stable").drop(columns="is_bad")
