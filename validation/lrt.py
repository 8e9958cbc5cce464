"""Level and power of the bootstrap likelihood-ratio test of one component against two.

    python -m validation.lrt [--data-sets 200] [--draws 99] [--out docs/lrt.md]

One column of 100 rows, from one normal distribution (level) and from equal parts of two (power);
one component is tested against two, with variances in common (E) or with each its own (V).
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import bayesgmm as bg

ROWS = 100
LEVELS = (0.01, 0.05, 0.1)
FAMILIES = ("E", "V")


@dataclass(frozen=True)
class Case:
    """Halves from two normal distributions with variance 1, so far apart; 0 is one component."""

    distance: float

    @property
    def name(self) -> str:
        """As the page calls it."""
        if self.distance == 0:
            return "one"
        return f"two, {self.distance:g} sds apart"

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a data set."""
        is_second = rng.random(ROWS) < 0.5
        return (rng.normal(size=ROWS) + self.distance * is_second)[:, None]


CASES = (Case(0.0), Case(2.5))


def one(case: Case, family: str, draws: int, seed: np.random.SeedSequence) -> dict[str, object]:
    """Test one data set."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bg.errors.BayesgmmWarning)
        test = bg.bootstrap_lrt(
            bg.GaussianMixture(1, family),
            case.draw(rng),
            draws=draws,
            threads=1,
            random_seed=int(rng.integers(2**31)),
            progressbar=False,
        )
    return {
        "truth": case.name,
        "family": family,
        "statistic": test["statistic"].item(),
        "p_value": test["p_value"].item(),
        "n_failed": test["n_failed"].item(),
    }


def summarise(found: pd.DataFrame) -> pd.DataFrame:
    """Return the share of p-values at or below each level, by truth and family."""
    records = []
    for (truth, family), part in found.groupby(["truth", "family"], sort=False):
        p, n = part["p_value"], len(part)
        record: dict[str, object] = {"truth": truth, "family": family, "data_sets": n}
        for level in LEVELS:
            share = float((p <= level).mean())
            record[f"rejected_{level:g}"] = share
            record[f"mc_error_{level:g}"] = float(np.sqrt(share * (1.0 - share) / n))
        record["failed"] = int(part["n_failed"].sum())
        records.append(record)
    return pd.DataFrame(records)


def page(table: pd.DataFrame, draws: int, seed: int) -> str:
    """Return the table as Markdown."""
    n = int(table["data_sets"].max())
    head = ["data from", "fitted with", *(f"rejected at {100 * level:g} %" for level in LEVELS)]
    lines = [[*head, "failed replicates"], ["---", "---", *["---:"] * (len(LEVELS) + 1)]]
    for row in table.to_dict("records"):
        cells = [
            f"{100 * row[f'rejected_{level:g}']:.1f} ± {100 * row[f'mc_error_{level:g}']:.1f}"
            for level in LEVELS
        ]
        failed = f"{100 * row['failed'] / (row['data_sets'] * draws):.2f} %"
        lines.append([row["truth"], row["family"], *cells, failed])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    families = " ".join(table["family"].unique())
    return f"""# Level and power of the bootstrap likelihood-ratio test

Written by `python -m validation.lrt --data-sets {n} --draws {draws} --seed {seed} --families
{families}`: how often, in per cent and with its Monte Carlo error, `bootstrap_lrt` rejects one
component in favour of two. Data sets have {ROWS} rows in one column, from one normal distribution
or from equal parts of two with standard deviation 1; each is tested with {draws} replicates. *E*
has a common variance, *V* one for each component. Replicates without a usable optimum fail and are
left out.

{text}
"""


def main() -> None:
    """Run the simulation and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-sets", type=int, default=200)
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: list[dict[str, object]] = []
    with ProcessPoolExecutor(options.workers) as pool:
        for case in CASES:
            # The same data sets for both families.
            seeds = np.random.SeedSequence([options.seed, round(10 * case.distance)])
            children = seeds.spawn(options.data_sets)
            for family in options.families:
                found += pool.map(partial(one, case, family, options.draws), children)
                print(f"  {case.name}: {family}", file=sys.stderr, flush=True)
    table = summarise(pd.DataFrame(found))
    text = page(table, options.draws, options.seed)
    print(text)
    if options.out:
        options.out.write_text(text)
        record = {"seed": options.seed, "draws": options.draws, "tests": found}
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
