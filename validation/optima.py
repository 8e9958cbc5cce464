"""Default fits beside the best that mclust finds: every data set, family and K of its table.

    python -m validation.optima [--only DATASET ...] [--alone] [--out docs/optima.md]

`select` fits all families of one size, each as `fit_em` does, but families that are nested in
several others are searched once; ``--alone`` makes every fit by itself, with the same results.
The references are in tests/golden (mclust 6.0.0): `mclust_table.csv`, EM from its hierarchical
start with tolerance 1e-13; `mclust/vve_corrected.json` for VVE, where mclust's M-step is no
maximum; `multistart_best.json`, the best of up to 200 random starts.  Left out are fits that
mclust's table calls tiny (a component with fewer than d + 2 observations) or does not have.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import bayesgmm as bg

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
# Columns that are fitted, where a file has others as well.
COLUMNS = {
    "EuroUnemployment": ["TUR", "YUR", "LUR"],
    "crabs": ["FL", "RW", "CL", "CW", "BD"],
    "banknote": ["Length", "Left", "Right", "Bottom", "Top", "Diagonal"],
    "baudry_ex4_1": ["X1", "X2"],
    "baudry_ex4_3": ["X1", "X2"],
    "chevron": ["x", "y"],
    "wine13": [
        *("Alcohol", "Malic", "Ash", "Alcalinity", "Magnesium", "Phenols", "Flavanoids"),
        *("Nonflavanoid", "Proanthocyanins", "Intensity", "Hue", "OD280", "Proline"),
    ],
    "wreath": ["x1", "x2"],
}
REACHED = 1e-6  # relative to the log-likelihood
BETTER = 1e-4  # in log-likelihood

Case = tuple[str, str, int, float, float]  # data set, family, K, mclust's value, the best known


def load(name: str) -> pd.DataFrame:
    """Return the columns of a data set that mclust's table is about."""
    table = pd.read_csv(GOLDEN / "data" / f"{name}.csv")
    return table[COLUMNS[name]] if name in COLUMNS else table.select_dtypes("number")


def cases(only: list[str] | None = None) -> Iterator[Case]:
    """Yield every case with its references."""
    read = json.loads((GOLDEN / "multistart_best.json").read_text())["fits"]
    best = {(Path(f["csv"]).stem, f["model"], f["K"]): f["best_loglik"] for f in read}
    read = json.loads((GOLDEN / "mclust" / "vve_corrected.json").read_text())["fits"]
    exact = {(f["dataset"], f["K"]): f["loglik"] for f in read}
    table = pd.read_csv(GOLDEN / "mclust_table.csv").fillna({"flag": ""})
    for row in table.itertuples():
        value, flag = float(str(row.loglik)), str(row.flag)
        if "tiny_component" in flag or "no_fit" in flag or np.isnan(value):
            continue
        if only and row.dataset not in only:
            continue
        if "VVE_not_ML" in flag:
            value = exact.get((str(row.dataset), int(str(row.K))), -np.inf)
        known = max(value, best.get((str(row.dataset), str(row.model), int(str(row.K))), -np.inf))
        yield str(row.dataset), str(row.model), int(str(row.K)), value, known


def measure(part: list[Case], alone: bool = False) -> list[dict[str, object]]:
    """Fit by default what is of one data set and one number of components."""
    name, _, k, *_ = part[0]
    table = load(name)
    groups = [[case] for case in part] if alone else [part]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        for group in groups:
            began = time.process_time()
            families = [family for _, family, *_ in group]
            found = bg.select(
                table, n_components=k, covariance=families, random_seed=1, progressbar=False
            )
            seconds = time.process_time() - began
            for _, family, _, value, known in group:
                fit = found.fits.get((family, k))
                rows.append(
                    {
                        "dataset": name,
                        "family": family,
                        "K": k,
                        "mclust": value,
                        "known": known,
                        "ours": -np.inf if fit is None else float(fit["criteria"]["loglik"]),
                        "reason": "no usable start" if fit is None else fit.attrs["stop_reason"],
                        "seconds": seconds / len(group),
                    }
                )
    return rows


def nested_lower(found: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs in which a wider family has the lower log-likelihood."""
    freedom = "IEV"
    pairs = found.merge(found, on=["dataset", "K"], suffixes=("", "_wider"))
    is_wider = [
        a != b
        and len(a) == len(b)
        and all(freedom.index(x) <= freedom.index(y) for x, y in zip(a, b, strict=True))
        for a, b in zip(pairs["family"], pairs["family_wider"], strict=True)
    ]
    pairs = pairs[is_wider]
    return pairs[pairs["ours_wider"] < pairs["ours"] - REACHED * pairs["ours"].abs()]


def page(found: pd.DataFrame) -> str:
    """Return the results as Markdown."""
    pairs = nested_lower(found)
    gain = found["ours"] - found["mclust"]
    is_missed = found["ours"] < found["known"] - REACHED * found["known"].abs()
    has_mclust = np.isfinite(found["mclust"])
    better = (gain > BETTER) & has_mclust
    n, n_missed = len(found), int(is_missed.sum())
    share = 100 * better.sum() / has_mclust.sum()
    n_spurious = int((found["reason"] == "spurious").sum())
    text = f"""# Optima

Written by `python -m validation.optima`: log-likelihoods of default fits, as of `fit_em(spec, X,
random_seed=1)` and, which is the same, of `select(X, n_components=K, random_seed=1)`, beside
mclust 6.0.0 (its hierarchical start, tolerance 1e-13; VVE with an exact M-step) and the best of up
to 200 random starts of its EM. Core seconds are of a fit with its errors, the median; all families
of one size share what is found in those nested in several of them.

* {n} cases: data set, family, number of components.
* At least the best known, to {REACHED:g} relative: {n - n_missed}.
* Better than mclust by more than {BETTER:g}: {better.sum()} of {has_mclust.sum()} ({share:.0f} %);
  by {gain[better].median():.2f} in the median, by {gain[better].max():.1f} at most.
* Pairs of nested families in which the wider one is lower: {len(pairs)}.
* Fits that the verdict calls spurious: {n_spurious}.

| data set | cases | best known | better than mclust | median gain | largest | core seconds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""
    lines = []
    for name, part in found.groupby("dataset"):
        own = gain[part.index][better[part.index]]
        reached = len(part) - int(is_missed[part.index].sum())
        lines.append(
            f"| {name} | {len(part)} | {reached} | {len(own)} | "
            f"{own.median() if len(own) else 0:.2f} | {own.max() if len(own) else 0:.1f} | "
            f"{part['seconds'].median():.2f} |"
        )
    for title, rows in (
        ("Below the best known", found[is_missed]),
        ("Spurious: nothing else was found", found[found["reason"] == "spurious"]),
    ):
        if len(rows):
            lines += ["", f"## {title}", "", "| data set | family | K | known | ours |"]
            lines += ["| --- | --- | ---: | ---: | ---: |"]
            lines += [
                f"| {r.dataset} | {r.family} | {r.K} | {r.known:.4f} | {r.ours:.4f} |"
                for r in rows.itertuples()
            ]
    if len(pairs):
        lines += ["", "## Nested, and the wider one is lower", ""]
        lines += ["| data set | K | family | ours | wider | ours |"]
        lines += ["| --- | ---: | --- | ---: | --- | ---: |"]
        lines += [
            f"| {r.dataset} | {r.K} | {r.family} | {r.ours:.4f} | "
            f"{r.family_wider} | {r.ours_wider:.4f} |"
            for r in pairs.itertuples()
        ]
    return text + "\n".join(lines) + "\n"


def main() -> None:
    """Fit all cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="DATASET")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    parts: dict[tuple[str, int], list[Case]] = {}
    for case in cases(options.only):
        parts.setdefault((case[0], case[2]), []).append(case)
    rows: list[dict[str, object]] = []
    with ProcessPoolExecutor(options.workers) as pool:
        each = pool.map(partial(measure, alone=options.alone), parts.values())
        for i, part in enumerate(each):
            rows += part
            print(f"  {i + 1} of {len(parts)}", file=sys.stderr, flush=True)
    text = page(pd.DataFrame(rows))
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
