"""Coverage of 95 % intervals in three regimes, for each way to find them.

    python -m validation.coverage [--data-sets 1000] [--methods observed profile] [--out page.md]
        [--keep found.jsonl]

Each data set is fitted from its truth and from default starts, and the highest optimum is kept, as
a user would.  Components get the labels of the truth (`labels.match`).  An interval that was not
found, and a fit that was not, counts as missing, beside the coverage of those that were found.
Under the misspecified regime the truth is the mixture that is nearest to it (by Kullback and
Leibler), which is what maximum likelihood estimates.

A further way is a function in `METHODS`: of a fit and the regime, with the lower and the upper
bounds of weights, means and covariances, NaN where it has none.  Replicates are `DRAWS` for each
kind of bootstrap, started at the fit, without the search for other optima that `bootstrap` makes
by default.  The table goes to ``--out`` as Markdown, and beside it, as JSON, what it was made from.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

import bayesgmm as bg
from bayesgmm import labels
from bayesgmm.inference import quantities
from bayesgmm.inference.delta import errors_on_scale
from bayesgmm.inference.estimate import estimate_of
from bayesgmm.inference.profiling import profile
from bayesgmm.information.uncertainty import Kind
from bayesgmm.rows import Row, parameter_rows, take, wald_interval
from bayesgmm.tree import DIMS, point

LEVEL = 0.95
STARTS = 10  # that of the truth, and default ones
TAILS = 8  # degrees of freedom of the misspecified regime
DRAWS = 99  # of each bootstrap: errors are good to 7 %

Bounds = dict[str, np.ndarray]  # weight (k,), mean (k, d), covariance (k, d, d)


@dataclass(frozen=True, eq=False)
class Regime:
    """What data come from, and what is fitted."""

    name: str
    text: str
    spec: bg.GaussianMixture
    n: int
    truth: bg.Parameters  # of the data
    target: bg.Parameters  # of the estimate
    is_heavy: bool
    profiled: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """The parameters, in the order of a summary."""
        return parameter_rows(self.spec, tuple(f"x{f}" for f in range(self.truth.d)))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a data set."""
        z = rng.choice(self.truth.k, size=self.n, p=self.truth.weight)
        noise = rng.normal(size=(self.n, self.truth.d))
        if self.is_heavy:
            noise /= np.sqrt(rng.chisquare(TAILS, size=(self.n, 1)) / TAILS)
        return self.truth.mean[z] + np.einsum("nij,nj->ni", self.truth.factor[z], noise)


@cache
def regimes() -> list[Regime]:
    """Return the three."""
    two = bg.GaussianMixture(2, "VVV")
    apart = bg.Parameters(
        np.array([0.5, 0.5]),
        np.array([[0.0, 0.0], [4.0, 2.0]]),
        np.array([[[1.0, 0.5], [0.5, 1.0]], [[1.5, -0.3], [-0.3, 0.8]]]),
    )
    one = bg.GaussianMixture(2, "V")
    near = bg.Parameters(
        np.array([0.4, 0.6]), np.array([[0.0], [2.5]]), np.array([[[1.0]], [[1.0]]])
    )
    heavy = bg.Parameters(
        np.array([0.3, 0.7]), np.array([[0.0], [4.5]]), np.array([[[1.0]], [[0.5]]])
    )
    profiled = ("weight[0]", "covariance[0, x0, x0]")
    return [
        Regime("separated", "two columns, VVV, N = 200, means 4.5 apart, equal weights",
               two, 200, apart, apart, False, profiled),
        Regime("overlapping", "one column, V, N = 500, means 2.5 sds apart, weights 0.4 and 0.6",
               one, 500, near, near, False, profiled),
        Regime("heavy tails", "one column, V, N = 300, weights 0.3 and 0.7, components are "
               f"Student's with {TAILS} degrees of freedom: the model is wrong",
               one, 300, heavy, nearest(heavy, one), True, profiled),
    ]  # fmt: skip


def nearest(truth: bg.Parameters, spec: bg.GaussianMixture) -> bg.Parameters:
    """Return the normal mixture nearest to one of Student's components, in one column.

    Maximum likelihood on 10 000 quantiles as data, from the truth and from default starts.
    """
    m = 5_000
    grid = student.ppf((np.arange(m) + 0.5) / m, TAILS)
    x = np.concatenate(
        [mu + f[0, 0] * grid for mu, f in zip(truth.mean, truth.factor, strict=True)]
    )
    weight = np.repeat(truth.weight, m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        fit = bg.fit_em(spec, x[:, None], sample_weight=weight, start=[truth, None], random_seed=1)
    return point(fit)


# The ways to find an interval


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit, and what several ways have in common."""

    tree: xr.DataTree
    regime: Regime

    @cached_property
    def resampled(self) -> xr.DataTree:
        """The nonparametric bootstrap."""
        return replicates(self, "nonparametric")


def replicates(fit: Fitted, kind: str) -> xr.DataTree:
    """Return a bootstrap."""
    return bg.bootstrap(
        fit.tree,
        kind=kind,
        draws=DRAWS,
        audited=0,
        threads=1,
        random_seed=fit.tree.attrs["random_seed"],
        progressbar=False,
    )


def around(fit: Fitted, se: Bounds) -> tuple[Bounds, Bounds]:
    """Return estimate -/+ 1.96 standard errors."""
    each = {n: wald_interval(getattr(point(fit.tree), n), se[n], LEVEL) for n in DIMS}
    return tuple({n: pair[i] for n, pair in each.items()} for i in (0, 1))


def wald(fit: Fitted, kind: Kind) -> tuple[Bounds, Bounds]:
    """Return intervals with errors from an information matrix."""
    estimate = estimate_of(fit.tree)
    se = estimate.uncertainty(kind).standard_errors()
    unit = {"weight": 1.0, "mean": estimate.data.scale}
    unit["covariance"] = np.outer(estimate.data.scale, estimate.data.scale)
    return around(fit, {n: getattr(se, n) * unit[n] for n in DIMS})


def bootstrapped(fit: Fitted, kind: str) -> tuple[Bounds, Bounds]:
    """Return intervals with errors from a bootstrap."""
    boot = fit.resampled if kind == "nonparametric" else replicates(fit, kind)
    return around(fit, arrays(bg.standard_errors(boot)))


def percentile(fit: Fitted) -> tuple[Bounds, Bounds]:
    """Return the percentiles of the nonparametric bootstrap."""
    ends = bg.percentile_intervals(fit.resampled, ci_prob=LEVEL)
    return tuple(arrays(ends.sel(bound=bound)) for bound in ("lower", "upper"))


def jackknifed(fit: Fitted) -> tuple[Bounds, Bounds]:
    """Return intervals with errors from the jackknife."""
    jack = bg.jackknife(fit.tree, threads=1, progressbar=False)
    return around(fit, arrays(jack["standard_error"]))


def arrays(group: xr.Dataset | xr.DataTree) -> Bounds:
    """Return weights, means and covariances as arrays."""
    return {n: group[n].to_numpy() for n in DIMS}


def scaled(fit: Fitted) -> tuple[Bounds, Bounds]:
    """Return Wald's on the logit scale of weights and the logarithmic one of variances."""
    estimate, regime = estimate_of(fit.tree), fit.regime
    asked = quantities.together(quantities.parameters_of(regime.rows, estimate.data))
    se = errors_on_scale(estimate, estimate.uncertainty("observed"), asked)
    y = asked.on_scale(estimate.parameters)
    ends = [asked.values(v) for v in wald_interval(y, se, LEVEL)]
    return tuple(spread(regime, regime.rows, end) for end in ends)


def profiled(fit: Fitted) -> tuple[Bounds, Bounds]:
    """Return profile-likelihood intervals of some parameters."""
    regime = fit.regime
    rows = [row for row in regime.rows if row.label in regime.profiled]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.FitWarning)
        found = [profile(fit.tree, row.label, ci_prob=LEVEL) for row in rows]
    ends = (np.array([f[end].item() for f in found]) for end in ("lower", "upper"))
    return tuple(spread(regime, rows, end) for end in ends)


Method = Callable[[Fitted], tuple[Bounds, Bounds]]
METHODS: dict[str, Method] = {
    "observed": partial(wald, kind="observed"),
    "observed, scaled": scaled,
    "sandwich": partial(wald, kind="sandwich"),
    "opg": partial(wald, kind="opg"),
    "profile": profiled,
    "nonparametric": partial(bootstrapped, kind="nonparametric"),
    "percentile": percentile,
    "weighted": partial(bootstrapped, kind="weighted"),
    "parametric": partial(bootstrapped, kind="parametric"),
    "jackknife": jackknifed,
}


def spread(regime: Regime, rows: list[Row], values: np.ndarray) -> Bounds:
    """Return arrays with the values of rows in their places, and NaN elsewhere."""
    found = {n: np.full(getattr(regime.truth, n).shape, np.nan) for n in DIMS}
    for row, value in zip(rows, values, strict=True):
        found[row.variable][row.at] = value
    return found


# One data set


def one(regime: Regime, methods: list[str], seed: np.random.SeedSequence) -> dict[str, object]:
    """Return the bounds of every method, (parameter, 2), and whether another optimum was higher."""
    rng = np.random.default_rng(seed)
    x = regime.draw(rng)
    nothing = np.full((len(regime.rows), 2), np.nan)
    found: dict[str, object] = dict.fromkeys(methods, nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        settings = {"random_seed": int(rng.integers(2**31)), "threads": 1, "progressbar": False}
        try:
            near = bg.fit_em(regime.spec, x, start=regime.target, **settings)
        except bg.errors.NumericalError:
            near = None
        try:
            start, n = [regime.target, None], STARTS - 1
            fit = bg.fit_em(regime.spec, x, start=start, n_starts=n, n_finish=3, **settings)
        except bg.errors.NumericalError:
            return found | {"elsewhere": True}
        order, _ = labels.match(point(fit), regime.target)
        fitted = Fitted(fit, regime)
        for name in methods:
            try:
                ends = METHODS[name](fitted)
            except bg.errors.NumericalError:  # no maximum: no interval
                continue
            except bg.errors.ArgumentError as refusal:
                if "ambiguous labels" not in str(refusal):
                    raise
                continue
            found[name] = np.column_stack(
                [take({n: a[order] for n, a in end.items()}, regime.rows) for end in ends]
            )
    gain = np.inf if near is None else float(fit["criteria"]["loglik"] - near["criteria"]["loglik"])
    return found | {"elsewhere": gain > 1e-3}


def all_of(
    regime: Regime, methods: list[str], n: int, seed: int, workers: int, keep: Path | None = None
) -> Iterator[dict[str, object]]:
    """Yield the data sets, those that are kept first, the others as they are finished.

    After Ctrl-C no more.
    """
    seeds = np.random.SeedSequence([seed, regime.n]).spawn(n)
    known = kept(regime, methods, seed, keep)
    yield from (known[i] for i in range(n) if i in known)
    with ProcessPoolExecutor(workers) as pool:
        left = [i for i in range(n) if i not in known]
        futures = {pool.submit(one, regime, methods, seeds[i]): i for i in left}
        try:
            for count, future in enumerate(as_completed(futures), start=1 + n - len(left)):
                found = future.result()
                if keep:
                    line = {"regime": regime.name, "seed": seed, "data_set": futures[future]}
                    line |= {k: np.asarray(v).tolist() for k, v in found.items()}
                    with keep.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                if count % 100 == 0:
                    print(f"  {regime.name}: {count} of {n}", file=sys.stderr, flush=True)
                yield found
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)


def kept(
    regime: Regime, methods: list[str], seed: int, keep: Path | None
) -> dict[int, dict[str, object]]:
    """Return what an earlier run has found, by number of the data set."""
    lines = keep.read_text().splitlines() if keep and keep.exists() else []
    found = {}
    for line in map(json.loads, lines):
        if (line["regime"], line["seed"]) == (regime.name, seed) and set(methods) <= set(line):
            values = {m: np.array(line[m]) for m in methods}
            found[line["data_set"]] = values | {"elsewhere": line["elsewhere"]}
    return found


def summarise(
    regime: Regime, methods: list[str], found: list[dict[str, object]]
) -> list[dict[str, object]]:
    """Return a record for every method and parameter."""
    target = take({n: getattr(regime.target, n) for n in DIMS}, regime.rows)
    widths = {m: np.ptp(np.array([f[m] for f in found]), axis=2) for m in methods}
    records = []
    for m in methods:
        ends = np.array([f[m] for f in found])
        known = ~np.isnan(ends).any(axis=2)
        holds = known & (ends[..., 0] <= target) & (target <= ends[..., 1])
        for i, row in enumerate(regime.rows):
            if m == "profile" and row.label not in regime.profiled:
                continue
            n = int(known[:, i].sum())
            share = float(holds[:, i].sum() / n) if n else np.nan
            ratio = widths[m][:, i] / widths[methods[0]][:, i]
            finite = ratio[np.isfinite(ratio)]
            records.append(
                {
                    "regime": regime.name,
                    "method": m,
                    "parameter": row.label,
                    "kind": row.kind,
                    "target": float(target[i]),
                    "data_sets": len(found),
                    "intervals": n,
                    "coverage": share,
                    "mc_error": float(np.sqrt(share * (1.0 - share) / n)) if n else np.nan,
                    "below": float((ends[known[:, i], i, 1] < target[i]).mean()) if n else np.nan,
                    "above": float((ends[known[:, i], i, 0] > target[i]).mean()) if n else np.nan,
                    "width": float(np.median(finite)) if len(finite) else np.nan,
                }
            )
    return records


def page(table: pd.DataFrame, elsewhere: dict[str, float], seed: int) -> str:
    """Return the table as Markdown."""
    n = int(table["data_sets"].max())
    error = 100 * np.sqrt(LEVEL * (1 - LEVEL) / n)
    text = f"""# Coverage of 95 % intervals

Written by `python -m validation.coverage --data-sets {n} --seed {seed}`: how often, in per cent, an
interval holds the true value, of those that were found. The Monte Carlo error of a true 95 is
{error:.1f}. Each is the estimate -/+ 1.96 standard errors, but for three. *Scaled* intervals are
symmetric on the logit scale of weights and the logarithmic one of variances. *Profile* is by the
likelihood, of two parameters. *Percentile* is by the draws of the *nonparametric* bootstrap, whose
standard deviations are the errors of the column before it. Bootstraps have {DRAWS} draws, so that
their errors are themselves uncertain by {100 / np.sqrt(2 * DRAWS):.0f} %.
"""
    for regime in regimes():
        part = table[table["regime"] == regime.name]
        if part.empty:
            continue
        methods = list(part["method"].unique())
        text += f"""
## {regime.name.capitalize()}

{regime.text[0].upper()}{regime.text[1:]}. {part["data_sets"].max()} data sets; in
{100 * elsewhere[regime.name]:.1f} % another optimum is higher than that near the truth.

"""
        head = ["parameter", *methods]
        lines = [head, ["---"] + ["---:"] * len(methods)]
        cells = part.set_index(["parameter", "method"])["coverage"]
        for label in part["parameter"].unique():
            shares = [cells.get((label, m), np.nan) for m in methods]
            lines.append([label, *("" if np.isnan(c) else f"{100 * c:.1f}" for c in shares)])
        for name, of in (
            ("*all too low*", lambda rows: f"{100 * rows['below'].mean():.1f}"),
            ("*all too high*", lambda rows: f"{100 * rows['above'].mean():.1f}"),
            (
                "*not found*",
                lambda rows: (
                    f"{100 * (1 - rows['intervals'].mean() / rows['data_sets'].mean()):.1f}"
                ),
            ),
            ("*width, relative*", lambda rows: f"{rows['width'].mean():.2f}"),
        ):
            lines.append([name, *(of(part[part["method"] == m]) for m in methods)])
        text += "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    return text


def main() -> None:
    """Run the simulation and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-sets", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--regimes", nargs="+", choices=[r.name for r in regimes()])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    keep = "a file of what was found in each data set, to go on from after an interruption"
    parser.add_argument("--keep", type=Path, help=keep)
    options = parser.parse_args()
    records, elsewhere = [], {}
    for regime in regimes():
        if options.regimes and regime.name not in options.regimes:
            continue
        arguments = (
            options.methods,
            options.data_sets,
            options.seed,
            options.workers,
            options.keep,
        )
        found = list(all_of(regime, *arguments))
        if found:
            records += summarise(regime, options.methods, found)
            elsewhere[regime.name] = float(np.mean([f["elsewhere"] for f in found]))
        if len(found) < options.data_sets:
            break
    text = page(pd.DataFrame(records), elsewhere, options.seed)
    print(text)
    if options.out:
        options.out.write_text(text)
        record = {"seed": options.seed, "elsewhere": elsewhere, "records": records}
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
