"""Missing at random: the bias of dropping incomplete rows, and of integrating over what is missing.

    python -m validation.missing [--data-sets 1000] [--rows 1000] [--out docs/missing.md]

Two components in three columns; the first column is always observed, each of the other two is
missing with probability 0.7 / (1 + exp(1.5 - x0)): where x0 is large, mostly.  EM starts from the
truth, so that components keep their names.
"""

from __future__ import annotations

import argparse
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import bayesgmm as bg
from bayesgmm.moments import Parameters
from bayesgmm.rows import parameter_rows, standard_errors, take

TRUTH = Parameters(
    np.array([0.4, 0.6]),
    np.array([[0.0, 0.0, 0.0], [3.0, 2.0, -1.5]]),
    np.array(
        [
            [[1.0, 0.6, 0.3], [0.6, 1.0, 0.2], [0.3, 0.2, 1.0]],
            [[1.0, 0.6, 0.3], [0.6, 1.5, -0.4], [0.3, -0.4, 0.8]],
        ]
    ),
)
SPEC = bg.GaussianMixture(2, "VVV")
WAYS = ("complete", "drop", "marginalise")  # complete: before anything was missing
ROWS = parameter_rows(SPEC, ("x0", "x1", "x2"))
INTERVAL = 1.959964


def values(p: Parameters) -> np.ndarray:
    """Return all parameters, in the order of a summary."""
    return take({"weight": p.weight, "mean": p.mean, "covariance": p.covariance}, ROWS)


def one(rows: int, seed: np.random.SeedSequence) -> np.ndarray:
    """Return estimates and standard errors, (ways, 2, parameter), and the share of rows dropped."""
    rng = np.random.default_rng(seed)
    z = rng.choice(2, size=rows, p=TRUTH.weight)
    x = TRUTH.mean[z] + np.einsum("nij,nj->ni", TRUTH.factor[z], rng.normal(size=(rows, 3)))
    holes = x.copy()
    chance = 0.7 / (1.0 + np.exp(1.5 - x[:, 0]))
    holes[:, 1:][rng.random((rows, 2)) < chance[:, None]] = np.nan
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        for way in WAYS:
            data, options = holes, {"missing": way}
            if way == "complete":
                data, options = x, {}
            fit = bg.fit_em(SPEC, data, start=TRUTH, random_seed=1, threads=1, **options)
            estimate = values(bg.tree.point(fit))
            found.append([estimate, take(standard_errors(fit), ROWS)])
    return np.array(found)


def page(found: np.ndarray, rows: int, seed: int) -> str:
    """Return the results as Markdown; ``found`` is (data sets, ways, 2, parameter)."""
    n, truth = len(found), values(TRUTH)
    error = found[:, :, 0] - truth
    bias, sd = error.mean(axis=0), error.std(axis=0, ddof=1)
    noise = sd / np.sqrt(n)
    inside = np.abs(error) <= INTERVAL * found[:, :, 1]
    coverage = 100 * inside.mean(axis=0)
    chance = 100 * np.sqrt(0.95 * 0.05 / n)
    head = f"""# Values missing at random

Written by `python -m validation.missing --data-sets {n} --rows {rows} --seed {seed}`: two
components in three columns, of which the second and third are missing more often where the first is
large. Bias of maximum likelihood, with its Monte Carlo standard error, and coverage of 95 % Wald
intervals (Monte Carlo error of a true 95: {chance:.1f}): from the data before anything was missing,
from complete rows alone (`missing="drop"`), and from what is observed (`missing="marginalise"`).

| parameter | truth | bias: complete | drop | marginalise | coverage: complete | drop | marg. |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
    lines = [head]
    for i, row in enumerate(ROWS):
        cells = [f"{bias[w, i]:+z.3f} ± {noise[w, i]:.3f}" for w in range(3)]
        cells += [f"{coverage[w, i]:.1f} %" for w in range(3)]
        lines.append(f"| {row.label} | {truth[i]:g} | " + " | ".join(cells) + " |")
    lines += ["", "| | largest bias, in sd of the estimate | median RMSE, complete = 1 |"]
    lines += ["| --- | ---: | ---: |"]
    rmse = np.sqrt((error**2).mean(axis=0))
    for w, way in enumerate(WAYS):
        most, ratio = np.abs(bias[w] / sd[w]).max(), np.median(rmse[w] / rmse[0])
        lines.append(f"| {way} | {most:.2f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, fit, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-sets", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seeds = np.random.SeedSequence(options.seed).spawn(options.data_sets)
    with ProcessPoolExecutor(options.workers) as pool:
        found = list(pool.map(partial(one, options.rows), seeds, chunksize=4))
    text = page(np.array(found), options.rows, options.seed)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
