"""Simulation-based calibration: whether posteriors hold the truth as often as they say.

    python -m validation.sbc [--simulations 500] [--cases VVV EEE] [--workers 2] [--out docs/sbc.md]
        [--keep found.jsonl] [--beside CASE ...]

`validation.ranks` makes one simulation.  Here are many, of several cases; the same with bugs
planted in the log-posterior, which must be seen; some again by the sampler of `validation.gibbs`;
and the page about them, with two pictures.

References
----------
Säilynoja, Bürkner & Vehtari (2022), Statistics and Computing 32 (the simultaneous band).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from zlib import crc32

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats
from arviz_stats.ecdf_utils import ecdf_pit
from matplotlib import colormaps
from matplotlib.colors import to_hex

from validation import gibbs
from validation.ranks import BUGS, RANKED, cases, one

BAND = 0.99  # probability of the simultaneous band
# Correlation of a uniform place with the same place among so many draws: variances 1/12 and 1/6n.
NOISE = (1.0 + 2.0 / RANKED) ** -0.5
PICTURES = ("sbc", "sbc-planted")
SEEN = 0.01  # a bug is seen where the smallest p-value, times their number, is below


# Many


@dataclass(frozen=True)
class Study:
    """Simulations of one case, with one bug or without, or by the sampler of `gibbs`."""

    case: str
    bug: str | None
    n: int
    seed: int
    sampler: str = "nuts"

    def one(self, i: int) -> dict[str, object]:
        """Return simulation i, and which it is."""
        seeds = np.random.SeedSequence([self.seed, crc32(self.case.encode())], spawn_key=(i,))
        bug = BUGS[self.bug] if self.bug else None
        began = time.perf_counter()
        case = cases()[self.case]
        found = one(case, seeds, bug) if self.sampler == "nuts" else gibbs.one(case, seeds)
        seconds = time.perf_counter() - began
        which = {"case": self.case, "bug": self.bug, "seed": self.seed, "sampler": self.sampler}
        return found | which | {"simulation": i, "seconds": seconds}


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
    names = ("case", "bug", "seed", "sampler")
    wanted = [getattr(study, name) for name in names]
    found = {}
    for line in map(json.loads, lines):
        if [line[name] for name in names] == wanted and line["simulation"] < study.n:
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
        aes_by_visuals={"ecdf_lines": ["color"]},
        visuals={"p_value_text": False, "suspicious_points": False, "xlabel": False},
        figure_kwargs={"figsize": (12, 7), "layout": "constrained"},
        color=[to_hex(c) for c in colormaps["tab20"].colors[: len(tables)]],
    )
    x, lower, upper = band(least)
    for name in names:
        axes = drawn.get_target(name, {})
        axes.fill_between(x, lower - x, upper - x, step="post", color="0.9", zorder=0)
        axes.autoscale(axis="y")
    drawn.add_legend("case", loc="outside right upper", frameon=False)
    drawn.savefig(path)


def summarise(study: Study, found: list[dict[str, object]]) -> dict[str, object]:
    """Return counts of verdicts, p-values, and how many quantities are within the band."""
    status = pd.Series([f["status"] for f in found]).value_counts()
    record: dict[str, object] = {"case": study.case, "bug": study.bug, "simulations": len(found)}
    record |= {s: int(status.get(s, 0)) for s in ("ok", "warn", "fail", "no maximum")}
    for name, trusted in (("all", False), ("trusted", True)):
        table = places(found, trusted=trusted)
        p = p_values(table) if len(table) > 1 else pd.Series(dtype=float)
        record |= {
            f"p_{name}": p.to_dict(),
            f"least_{name}": float(np.minimum(1.0, p.min() * len(p))),  # NaN of none
            f"inside_{name}": sum(is_inside(u.to_numpy()) for _, u in table.items()),
        }
    return record | {"seconds": float(np.median([f["seconds"] for f in found]))}


def beside_exact(
    found: list[dict[str, object]], exact: list[dict[str, object]]
) -> dict[str, object]:
    """Compare places among NUTS's draws with those in the exact posterior of the same data.

    ``difference`` and its standard error are of the places' means, quantity by quantity;
    ``spread`` is the standard deviation of single differences, that of 64 draws included.
    """
    ours = {f["simulation"]: f["place"] for f in found if f["place"]}
    theirs = {f["simulation"]: f["place"] for f in exact if f["place"] and f["simulation"] in ours}
    at = sorted(theirs)
    names = list(theirs[at[0]])
    u, v = (pd.DataFrame([each[i] for i in at])[names] for each in (ours, theirs))
    gap = u - v
    return {
        "case": found[0]["case"],
        "simulations": len(at),
        "difference": gap.mean().to_dict(),
        "error": (gap.std() / np.sqrt(len(at))).to_dict(),
        "spread": gap.std().to_dict(),
        "correlation": u.corrwith(v).to_dict(),
        "p_nuts": p_values(u).to_dict(),
        # Places of all draws reach 0 and 1, which the test cannot take.
        "p_exact": p_values(v.clip(1e-4, 1.0 - 1e-4)).to_dict(),
    }


def as_table(lines: list[list[str]], *, left: int = 1) -> str:
    """Return lines, the first of which is the head, as Markdown."""
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def exact_table(pairs: list[dict[str, object]]) -> str:
    """Return the places beside those in the exact posterior as Markdown."""
    lines = [["case", "quantity", "data sets", "p, NUTS", "p, exact", "mean difference"]]
    lines[0].append("correlation")
    for pair in pairs:
        for name, difference in pair["difference"].items():
            error = pair["error"][name]
            lines.append(
                [
                    *(pair["case"], name, str(pair["simulations"])),
                    f"{pair['p_nuts'][name]:.2g}",
                    *(f"{pair['p_exact'][name]:.2g}", f"{difference:+.4f} ± {error:.4f}"),
                    f"{pair['correlation'][name]:.3f}",
                ]
            )
    return as_table(lines, left=2)


def page(
    records: list[dict[str, object]],
    pairs: list[dict[str, object]],
    seed: int,
    pictures: list[str],
) -> str:
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
    lines += [[q, *(f"{r['p_trusted'].get(q, np.nan):.2g}" for r in plain)] for q in names]
    each = as_table(lines)
    lines = [["bug", "case", "simulations", "p", "seen", "in band", "seen best by"]]
    for r in spoilt:
        worst = min(r["p_all"], key=r["p_all"].get)
        is_seen = "yes" if r["least_all"] < SEEN else "no"
        inside = f"{r['inside_all']} of {len(names)}"
        least = f"{r['least_all']:.1g}" if r["least_all"] > 1e-12 else "< 1e-12"
        lines.append([r["bug"], r["case"], str(r["simulations"]), least, is_seen, inside, worst])
    bugs = as_table(lines, left=2)
    seconds = float(np.median([r["seconds"] for r in plain]))
    shown = [f"![{Path(p).stem}]({p})" for p in pictures]
    return f"""# Simulation-based calibration

Written by `python -m validation.sbc --simulations {n} --seed {seed}`. Parameters are drawn from the
prior, {", ".join(sorted({str(c.n) for c in cases().values()}))} rows from them, and the posterior
of these rows by `fit_em` (for the labels) and `sample_posterior`, 4 x (500 + 500) draws, thinned to
{RANKED}. The rank of the truth among the draws is uniform if the posterior is right, for every
quantity of parameters and data (Talts et al. 2018; Modrák et al. 2023). Twelve are looked at: seven
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

The distribution functions of the ranks less the uniform one, and the band; of every case as many
fits as there are of that with the fewest:

{shown[0] if shown else "(no picture)"}

## Beside the exact posterior

Of many p-values some are small, and ranks scatter with the truths that chance has drawn. For some
priors a Gibbs sampler that shares no code with the package (`validation/gibbs.py`) gives the exact
posterior of the same simulated data: {gibbs.DRAWS} draws from far apart starts. If the places of
the truths there stray from uniformity in the same way, and differ from NUTS's places by nothing but
the noise of {RANKED} draws (which alone makes the correlation {NOISE:.3f}), then what strays is
chance, not the posterior. All fits are counted, also those that failed; data of which the Gibbs
chains disagree (R-hat {gibbs.AGREED} or more) are not.

{exact_table(pairs) if pairs else "(not run)"}

## Planted bugs

The same, with a bug in the log-posterior: the Jacobian of the covariances' coordinates left out,
weights in another order than means and covariances, the likelihood left out (the posterior is then
the prior, and every parameter by itself keeps uniform ranks: only quantities of parameters and data
see it). A bug is seen if *p* is below {SEEN}.

{bugs}

{shown[1] if len(shown) > 1 else "(no picture)"}

## Why not simuk's loop

simuk 0.3 samples each simulation by `pm.sample`, which compiles the model anew: 15 to 25 s each for
two components in one column on a busy machine with two cores, where `fit_em` and `sample_posterior`
together took about one (median of this run: {seconds:.2f} s). It also ranks each variable of the
model by itself, which cannot give the log-likelihood. So the ranks are our own, a dozen lines;
uniformity and pictures are ArviZ's, as they are for simuk.
"""


def renew(options: argparse.Namespace) -> None:
    """Make some cases of the page anew, beside their exact posterior; pictures stay."""
    kept_in = options.out.with_suffix(".json")
    record = json.loads(kept_in.read_text())
    for name in options.beside:
        study = Study(name, None, options.simulations, record["seed"])
        found = list(all_of(study, options.workers, options.keep))
        exact = list(all_of(replace(study, sampler="gibbs"), options.workers, options.keep))
        if len(found) < study.n or len(exact) < study.n:  # interrupted
            return
        by_case = {pair["case"]: pair for pair in record["beside exact"]}
        by_case[name] = beside_exact(found, exact)
        record["beside exact"] = [by_case[c] for c in gibbs.CASES if c in by_case]
        record["records"] = [
            summarise(study, found) if (r["case"], r["bug"]) == (name, None) else r
            for r in record["records"]
        ]
    pictures = [f"{stem}.png" for stem in PICTURES if options.out.with_name(f"{stem}.png").exists()]
    text = page(record["records"], record["beside exact"], record["seed"], pictures)
    print(text)
    options.out.write_text(text)
    kept_in.write_text(json.dumps(record, indent=1) + "\n")


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
    only = "only these cases anew, beside their exact posterior; the others stay as they are in OUT"
    parser.add_argument("--beside", nargs="+", choices=gibbs.CASES, metavar="CASE", help=only)
    options = parser.parse_args()
    if options.beside:
        renew(options)
        return
    studies = [Study(name, None, options.simulations, options.seed) for name in options.cases]
    if options.planted:
        name = "VVV" if "VVV" in options.cases else options.cases[0]
        studies += [Study(name, bug, options.planted, options.seed) for bug in BUGS]
    studies += [
        Study(name, None, options.simulations, options.seed, "gibbs")
        for name in options.cases
        if name in gibbs.CASES
    ]
    records, pairs, tables, spoilt = [], [], {}, {}
    by_nuts: dict[str, list[dict[str, object]]] = {}
    for study in studies:
        found = list(all_of(study, options.workers, options.keep))
        if len(found) < study.n:  # interrupted
            break
        if study.sampler == "gibbs":
            pairs.append(beside_exact(by_nuts[study.case], found))
            continue
        records.append(summarise(study, found))
        if study.bug is None:
            by_nuts[study.case] = found
            tables[study.case] = places(found, trusted=True)
        else:
            spoilt[study.bug] = places(found)
        label = study.case if study.bug is None else f"{study.case}, {study.bug}"
        print(f"  {label}: {records[-1]['least_all']:.2g}", file=sys.stderr, flush=True)
    if not tables:
        return
    pictures = []
    if options.out:
        for name, group in zip(PICTURES, (tables, spoilt), strict=True):
            if group:
                pictures.append(f"{name}.png")
                picture(group, options.out.with_name(pictures[-1]))
    text = page(records, pairs, options.seed, pictures)
    print(text)
    if options.out:
        options.out.write_text(text)
        record = {"seed": options.seed, "records": records, "beside exact": pairs}
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
