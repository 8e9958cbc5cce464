"""Simulation-based calibration: whether posteriors hold the truth as often as they say.

    python -m validation.sbc [--simulations 500] [--cases VVV EEE] [--workers 2] [--out docs/sbc.md]
        [--keep found.jsonl]

Parameters are drawn from the prior, data from them, and draws from the posterior by the public
verbs: the rank of a quantity of the true parameters among those of the draws is then uniform, for
any quantity, also of parameters and data together (Talts et al. 2018; Modrák et al. 2023).  For
posterior calibration parameters are drawn from the posterior of observed data, and fitted are the
observed and the simulated rows together (Säilynoja et al. 2025).

The same is done with bugs planted in the log-posterior, which must be seen.

References
----------
Talts, Betancourt, Simpson, Vehtari & Gelman (2018), arXiv:1804.06788.
Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari (2023), Bayesian Analysis 20.
Säilynoja, Schmitt, Bürkner & Vehtari (2025), arXiv:2502.03279.
Säilynoja, Bürkner & Vehtari (2022), Statistics and Computing 32 (the simultaneous band).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock
from zlib import crc32

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats
from arviz_stats.ecdf_utils import ecdf_pit

import bayesgmm as bg
from bayesgmm import labels
from bayesgmm.data.observations import read
from bayesgmm.moments import log_density
from bayesgmm.posterior import draws as drawing
from bayesgmm.posterior.density import Target
from bayesgmm.posterior.predictive import draw_covariance
from bayesgmm.posterior.verdict import label_free
from bayesgmm.prior import HalfNormal, InverseGamma
from bayesgmm.resolved import PseudoData, Separation, resolve
from bayesgmm.resolved import log_density as log_prior
from bayesgmm.tree import DIMS, point

RANKED = 64  # draws that a rank is among, thinned so that they are nearly independent
BAND = 0.99  # probability of the simultaneous band
SEEN = 0.01  # a bug is seen where the smallest p-value, times their number, is below

Draws = tuple[np.ndarray, np.ndarray, np.ndarray]  # weights (s, k), means, covariances


@dataclass(frozen=True)
class Case:
    """A specification whose prior's numbers are all given, and how many rows are simulated."""

    name: str
    text: str
    spec: bg.GaussianMixture
    n: int
    d: int
    observed: str | None = None  # a data set, every eighth row of which has been seen

    @property
    def group(self) -> str:
        """As ArviZ calls it."""
        return "prior_sbc" if self.observed is None else "posterior_sbc"

    def seen(self) -> np.ndarray:
        """Return the observed rows (n, d), none for prior calibration."""
        if self.observed is None:
            return np.empty((0, self.d))
        return np.asarray(bg.datasets.load(self.observed), dtype=float)[::8]


@cache
def prior_of(case: Case) -> PseudoData | Separation:
    """Return the prior's numbers, which do not depend on the data."""
    some = np.random.default_rng(0).normal(size=(20, case.d))
    return resolve(case.spec, read(some, family=case.spec.covariance))


@cache
def cases() -> dict[str, Case]:
    """Return all, by name."""
    pull = {"shrinkage": 0.03, "weight_concentration": 3.0}
    line = bg.ConjugatePrior(mean=0.0, scale=1.0, dof=5.0, **pull)
    plane = bg.ConjugatePrior(mean=0.0, scale=1.0, dof=6.0, **pull)
    eruptions = bg.ConjugatePrior(mean=(3.5, 70.0), scale=(0.5, 100.0), **pull)
    apart = {"mean": 0.0, "mean_sd": 4.0, "weight_concentration": 3.0, "units": "data"}
    half = bg.SeparationPrior(scale=HalfNormal(1.0), **apart)
    inverse = bg.SeparationPrior(scale=InverseGamma(4.0, 3.0), correlation=1.5, **apart)
    split = bg.SeparationPrior(correlation=3.0, **apart)

    def case(name: str, text: str, k: int, family: str, prior: bg.prior.Prior, n: int) -> Case:
        d = 1 if len(family) == 1 else 2
        return Case(name, text, bg.GaussianMixture(k, family, prior), n, d)

    all_of = (
        case("V", "conjugate", 2, "V", line, 40),
        case("V half-normal", "means and half-normal sds apart", 2, "V", half, 40),
        case("VVI", "conjugate", 2, "VVI", plane, 40),
        case("EEE", "conjugate, three components", 3, "EEE", plane, 60),
        case("VVV", "conjugate", 2, "VVV", plane, 40),
        case("VVV LKJ", "means, inverse-gamma sds and correlations apart", 2, "VVV", inverse, 40),
        case("VEE LKJ", "means, log-normal sds and correlations apart", 2, "VEE", split, 40),
        case("EEV", "conjugate; axes by Cayley's map", 2, "EEV", plane, 40),
        Case(
            *("VVV posterior", "conjugate, given 34 rows of Old Faithful"),
            *(bg.GaussianMixture(2, "VVV", eruptions), 34, 2, "faithful"),
        ),
    )
    return {c.name: c for c in all_of}


# The generative side


def from_prior(case: Case, rng: np.random.Generator) -> bg.Parameters:
    """Draw parameters from the prior."""
    prior, k = prior_of(case), case.spec.n_components
    covariance = draw_covariance(prior, case.spec.covariance, k, rng)
    noise = rng.normal(size=(k, case.d))
    if isinstance(prior, Separation):
        step = prior.mean_sd * noise
    else:
        root = np.linalg.cholesky(covariance)
        step = np.einsum("kij,kj->ki", root, noise) / np.sqrt(prior.shrinkage)
    weight = rng.dirichlet(np.full(k, prior.concentration))
    return bg.Parameters(weight, prior.mean + step, covariance)


@cache
def seen_posterior(case: Case) -> Draws:
    """Return many draws given the observed rows."""
    fit = fitted(case, case.seen(), seed=1, draws=2500)[0]
    return tuple(fit["posterior"][n].to_numpy().reshape(10_000, *fit["posterior"][n].shape[2:])
                 for n in DIMS)  # fmt: skip


def draw(case: Case, rng: np.random.Generator) -> tuple[bg.Parameters, np.ndarray]:
    """Draw parameters, and the data that a posterior is to be found for."""
    if case.observed is None:
        truth = from_prior(case, rng)
    else:
        at = rng.integers(10_000)
        truth = bg.Parameters(*(a[at] for a in seen_posterior(case)))
    z = rng.choice(truth.k, size=case.n, p=truth.weight)
    noise = rng.normal(size=(case.n, case.d))
    x = truth.mean[z] + np.einsum("nij,nj->ni", truth.factor[z], noise)
    return truth, np.concatenate([case.seen(), x])


# Bugs


def no_jacobian(target: Target) -> Target:
    """Return the target without the log-Jacobian of the covariances' coordinates."""
    return replace(target, terms=replace(target.terms, linear=0.0 * target.terms.linear))


class _Swapped(Target):
    def parameters(self, points: np.ndarray) -> dict[str, np.ndarray]:
        found = super().parameters(points)
        return found | {"weight": found["weight"][..., ::-1]}


def swapped_weights(target: Target) -> Target:
    """Return the target whose draws have the weights in the wrong order."""
    return _Swapped(target.chart, target.terms, target.data)


Bug = Callable[[Target], Target]
BUGS: dict[str, Bug] = {
    "wrong Jacobian": no_jacobian,
    "swapped weights": swapped_weights,
    "dropped likelihood": Target.without_data,
}


# One simulation


def fitted(
    case: Case,
    x: np.ndarray,
    seed: int,
    *,
    draws: int = 500,
    tune: int = 500,
    chains: int = 4,
    n_starts: int = 10,
) -> tuple[xr.DataTree, bg.Parameters]:
    """Return the posterior as a user gets it, and the fit by EM that gave it its labels."""
    has_mode = isinstance(case.spec.prior, bg.ConjugatePrior)
    settings = {"random_seed": seed, "progressbar": False}
    mle = bg.fit_em(
        case.spec,
        x,
        estimate="map" if has_mode else "mle",
        n_starts=n_starts,
        n_finish=3,
        standard_errors=False,
        threads=1,
        **settings,
    )
    settings |= {"draws": draws, "tune": tune, "chains": chains, "cores": 1}
    post = bg.sample_posterior(case.spec, x, mle=mle, log_likelihood=False, **settings)
    return post, point(mle)


def quantities(
    case: Case, x: np.ndarray, theta: Draws, pivot: bg.Parameters
) -> dict[str, np.ndarray]:
    """Return what is ranked, (s,) each: the same function of the truth and of the draws.

    Of quantities with a value for each column the first or the last is taken.  Those without labels
    come first; for the others components get the pivot's, which the data alone decide.
    """
    weight, mean, covariance = theta
    free = {n: a[0] for n, a in label_free(*(a[None] for a in theta)).items()}
    each = [bg.Parameters(*parts) for parts in zip(weight, mean, covariance, strict=True)]
    order = labels.align(weight, mean, covariance, pivot).permutation
    a, m, s = (labels.apply(order, array) for array in theta)
    gap = m[:, 0] - m[:, 1]
    distance = np.einsum("si,si->s", gap, np.linalg.solve(s[:, 0] + s[:, 1], gap[..., None])[..., 0])
    return {
        "mean of all": free["mixture_mean"][:, 0],
        "sd of all": free["mixture_sd"][:, -1],
        "share between": free["between"][:, 0],
        "log-volume": free["log_volume"],
        "entropy of weights": free["weight_entropy"],
        "log-likelihood": np.array([log_density(x, t).sum() for t in each]),
        "log-prior": log_prior(prior_of(case), case.spec.covariance, *theta),
        "weight[0]": a[:, 0],
        "mean[0]": m[:, 0, 0],
        "variance[0]": s[:, 0, -1, -1],
        "log det[1]": np.linalg.slogdet(s[:, 1])[1],
        "distance[0, 1]": distance,
    }


def one(
    case: Case, seed: np.random.SeedSequence, bug: Bug | None = None, **settings: int
) -> dict[str, object]:
    """Return the place of every quantity of the truth among those of the draws, and the verdict.

    Places are uniform on (0, 1) if truth and draws are exchangeable.
    """
    rng = np.random.default_rng(seed)
    truth, x = draw(case, rng)
    with warnings.catch_warnings(), mock.patch.object(drawing, "target", planted(bug)):
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        try:
            post, pivot = fitted(case, x, int(rng.integers(2**31)), **settings)
        except bg.errors.NumericalError:  # no maximum, for which the data alone are to blame
            return {"status": "no maximum", "place": {}}
    group = post["posterior"]
    total = group.sizes["chain"] * group.sizes["draw"]
    kept = np.linspace(0, total - 1, min(total, RANKED)).round().astype(int)
    theta = tuple(group[n].to_numpy().reshape(total, *group[n].shape[2:])[kept] for n in DIMS)
    true = tuple(getattr(truth, n)[None] for n in DIMS)
    drawn, wanted = (quantities(case, x, t, pivot) for t in (theta, true))
    found = {n: place(values, wanted[n].item(), rng) for n, values in drawn.items()}
    return {"status": json.loads(post.attrs["verdict"])["status"], "place": found}


def place(values: np.ndarray, truth: float, rng: np.random.Generator) -> float:
    """Return the share of values below the truth, spread evenly over its step and over ties."""
    below, equal = (values < truth).sum(), (values == truth).sum()
    return float((below + rng.uniform() * (1 + equal)) / (1 + len(values)))


def planted(bug: Bug | None) -> Callable[..., Target]:
    """Return what `bayesgmm` makes its log-posterior with, with a bug."""
    right = drawing.target
    return right if bug is None else lambda *arguments: bug(right(*arguments))


# Many


@dataclass(frozen=True)
class Study:
    """Simulations of one case, with one bug or without."""

    case: str
    bug: str | None
    n: int
    seed: int

    def one(self, i: int) -> dict[str, object]:
        """Return simulation i, and which it is."""
        seeds = np.random.SeedSequence([self.seed, crc32(self.case.encode())], spawn_key=(i,))
        bug = BUGS[self.bug] if self.bug else None
        began = time.perf_counter()
        found = one(cases()[self.case], seeds, bug)
        seconds = time.perf_counter() - began
        return found | {"case": self.case, "bug": self.bug, "seed": self.seed, "simulation": i,
                        "seconds": seconds}  # fmt: skip


def all_of(study: Study, workers: int, keep: Path | None = None) -> Iterator[dict[str, object]]:
    """Yield the simulations, those that are kept first, the others as they are finished.

    After Ctrl-C no more.
    """
    known = kept(study, keep)
    yield from known.values()
    left = [i for i in range(study.n) if i not in known]
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(study.one, i) for i in left]
        try:
            for future in as_completed(futures):
                found = future.result()
                if keep:
                    with keep.open("a") as file:
                        file.write(json.dumps(found) + "\n")
                yield found
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)


def kept(study: Study, keep: Path | None) -> dict[int, dict[str, object]]:
    """Return what an earlier run has found, by number of the simulation."""
    lines = keep.read_text().splitlines() if keep and keep.exists() else []
    wanted = (study.case, study.bug, study.seed)
    found = {}
    for line in map(json.loads, lines):
        if (line["case"], line["bug"], line["seed"]) == wanted and line["simulation"] < study.n:
            found[line["simulation"]] = line
    return found


def places(found: list[dict[str, object]], *, trusted: bool = False) -> pd.DataFrame:
    """Return the places, a row for every simulation; if asked for, only of fits that did not fail.

    Which these are depends on the data and the sampler's luck, not on the truth given the data, so
    that places are uniform among them, too.
    """
    ordered = sorted(found, key=lambda f: f["simulation"])
    chosen = [f["place"] for f in ordered if f["place"] and (not trusted or f["status"] != "fail")]
    return pd.DataFrame(chosen)


def p_values(table: pd.DataFrame) -> pd.Series:
    """Return the p-value of uniformity of every quantity (ArviZ's ``pot_c``)."""
    return table.apply(lambda u: float(array_stats.uniformity_test(u.to_numpy())[0]))


@cache
def band(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points, and the simultaneous band of the distribution function of n places there."""
    points, _, lower, upper = ecdf_pit(np.linspace(0, 1, n), BAND, n_simulations=5000)
    return points, lower, upper


def is_inside(values: np.ndarray) -> bool:
    """Whether the distribution function of places is within the simultaneous band."""
    points, lower, upper = band(len(values))
    share = np.searchsorted(np.sort(values), points, side="right") / len(values)
    return bool(((lower <= share) & (share <= upper)).all())


# The page


def picture(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Draw the distributions of places less the uniform one, a colour for every table."""
    least = min(map(len, tables.values()))
    stacked = np.stack([t.to_numpy()[:least] for t in tables.values()], axis=-1)
    names = list(next(iter(tables.values())))
    group = xr.Dataset(
        {n: (("chain", "draw", "case"), stacked[None, :, i]) for i, n in enumerate(names)},
        coords={"case": list(tables)},
    )
    drawn = az.plot_ecdf_pit(
        xr.DataTree.from_dict({"prior_sbc": group}),
        backend="matplotlib",
        cols=["__variable__"],
        col_wrap=4,
        aes={"color": ["case"]},
        visuals={"p_value_text": False, "suspicious_points": False},
        figure_kwargs={"figsize": (11, 7)},
    )
    x, lower, upper = band(least)
    for name in names:
        axes = drawn.get_target(name, {})
        axes.fill_between(x, lower - x, upper - x, step="post", color="0.9", zorder=0)
    drawn.add_legend("case")
    drawn.savefig(path)


def summarise(study: Study, found: list[dict[str, object]]) -> dict[str, object]:
    """Return counts of verdicts, p-values, and how many quantities are within the band."""
    status = pd.Series([f["status"] for f in found]).value_counts()
    record: dict[str, object] = {"case": study.case, "bug": study.bug, "simulations": len(found)}
    record |= {s: int(status.get(s, 0)) for s in ("ok", "warn", "fail", "no maximum")}
    for name, trusted in (("all", False), ("trusted", True)):
        table = places(found, trusted=trusted)
        p = p_values(table)
        record |= {
            f"p_{name}": p.to_dict(),
            f"least_{name}": min(1.0, float(p.min()) * len(p)),
            f"inside_{name}": sum(is_inside(u.to_numpy()) for _, u in table.items()),
        }
    return record | {"seconds": float(np.median([f["seconds"] for f in found]))}


def as_table(lines: list[list[str]], *, left: int = 1) -> str:
    """Return lines, the first of which is the head, as Markdown."""
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def page(records: list[dict[str, object]], seed: int, pictures: list[str]) -> str:
    """Return the tables and pictures as Markdown."""
    plain = [r for r in records if r["bug"] is None]
    spoilt = [r for r in records if r["bug"] is not None]
    names = list(plain[0]["p_all"])
    n = max(r["simulations"] for r in plain)
    lines = [["case", "prior", "ok", "warn", "fail", "no maximum", "p", "p, not failed", "in band"]]
    for r in plain:
        counts = [str(r[s]) for s in ("ok", "warn", "fail", "no maximum")]
        least = [f"{r[f'least_{name}']:.2g}" for name in ("all", "trusted")]
        inside = f"{r['inside_trusted']} of {len(names)}"
        lines.append([r["case"], cases()[r["case"]].text, *counts, *least, inside])
    overall = as_table(lines, left=2)
    lines = [["quantity", *(r["case"] for r in plain)]]
    lines += [[name, *(f"{r['p_trusted'][name]:.2g}" for r in plain)] for name in names]
    each = as_table(lines)
    lines = [["bug", "case", "simulations", "p", "seen", "in band", "seen best by"]]
    for r in spoilt:
        worst = min(r["p_all"], key=r["p_all"].get)
        is_seen = "yes" if r["least_all"] < SEEN else "no"
        inside = f"{r['inside_all']} of {len(names)}"
        least = f"{r['least_all']:.1g}"
        lines.append([r["bug"], r["case"], str(r["simulations"]), least, is_seen, inside, worst])
    bugs = as_table(lines, left=2)
    seconds = float(np.median([r["seconds"] for r in plain]))
    shown = [f"![{Path(p).stem}]({p})" for p in pictures]
    return f"""# Simulation-based calibration

Written by `python -m validation.sbc --simulations {n} --seed {seed}`. Parameters are drawn from the
prior, {", ".join(sorted({str(c.n) for c in cases().values()}))} rows from them, and the posterior
of these rows by `fit_em` (for the labels) and `sample_posterior`, 4 x (500 + 500) draws, thinned to
{RANKED}. The rank of the truth among the draws is uniform if the posterior is right, for every
quantity of parameters and data (Talts et al. 2018; Modrák et al. 2023). Twelve are looked at: six
without labels, the joint log-likelihood and the log-prior among them, and five of components, whose
labels, those of EM's fit, depend on the data alone, so that truth and draws get them in one way.
*Posterior* calibration (Säilynoja et al. 2025) draws the truth from the posterior of observed rows
and fits these and the simulated ones together.

The prior's numbers are all given, so that none depends on the data. Two-component fits to so few
rows often have several modes: the verdict then says so. Which fits fail depends on the data and the
sampler, not on the truth given the data, so that ranks are uniform among those that do not fail,
too; among all they are if chains have visited every mode as often as they should. Data without a
usable maximum (of the likelihood, where the prior has no MAP fit) are left out with the same right.

## Results

*p* is the smallest p-value of uniformity (ArviZ's `uniformity_test`) of the twelve, times twelve;
*in band* counts quantities within the simultaneous {100 * BAND:.0f} % band among fits that did not
fail.

{overall}

p-values of each, among fits that did not fail:

{each}

{shown[0] if shown else ""}

## Planted bugs

The same, with a bug in the log-posterior: the Jacobian of the covariances' coordinates left out,
weights in another order than means and covariances, the likelihood left out (the posterior is then
the prior, and every parameter by itself keeps uniform ranks: only quantities of parameters and data
see it). A bug is seen if *p* is below {SEEN}.

{bugs}

{shown[1] if len(shown) > 1 else ""}

## Why not simuk's loop

simuk 0.3 samples each simulation by `pm.sample`, which compiles the model anew: 15 to 25 s each for
two components in one column on a busy machine with two cores, where `sample_posterior` took less
than one (here {seconds:.2f} s, EM and verdict included). It also ranks each variable of the model by
itself, which cannot give the log-likelihood. So the ranks are our own, a dozen lines, in the groups
that simuk writes and ArviZ's `plot_ecdf_pit` reads.
"""


def main() -> None:
    """Run the simulations and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--cases", nargs="+", choices=list(cases()), default=list(cases()))
    parser.add_argument("--planted", type=int, default=100, help="simulations with each bug")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    keep = "a file of what each simulation gave, to go on from after an interruption"
    parser.add_argument("--keep", type=Path, help=keep)
    options = parser.parse_args()
    studies = [Study(name, None, options.simulations, options.seed) for name in options.cases]
    if options.planted:
        name = "VVV" if "VVV" in options.cases else options.cases[0]
        studies += [Study(name, bug, options.planted, options.seed) for bug in BUGS]
    records, tables, spoilt = [], {}, {}
    for study in studies:
        found = list(all_of(study, options.workers, options.keep))
        if len(found) < study.n:  # interrupted
            break
        records.append(summarise(study, found))
        if study.bug is None:
            tables[study.case] = places(found, trusted=True)
        else:
            spoilt[study.bug] = places(found)
        label = study.case if study.bug is None else f"{study.case}, {study.bug}"
        print(f"  {label}: {records[-1]['least_all']:.2g}", file=sys.stderr, flush=True)
    if not tables:
        return
    pictures = []
    if options.out:
        for name, group in (("sbc", tables), ("sbc-planted", spoilt)):
            if group:
                pictures.append(f"{name}.svg")
                picture(group, options.out.with_name(pictures[-1]))
    text = page(records, options.seed, pictures)
    print(text)
    if options.out:
        options.out.write_text(text)
        record = {"seed": options.seed, "records": records}
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
