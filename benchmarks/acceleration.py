"""Passes over the data until EM is within a tolerance of its limit: plain and accelerated.

Old Faithful, and simulated mixtures whose components overlap, from the partition that made them.
Both are stopped by the same rule, and must end at the same log-likelihood.  A pass whose result was
rejected counts.  Run ``python -m benchmarks.acceleration [--out docs/acceleration.md]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayesgmm.covariance import Covariance
from bayesgmm.data.observations import Data, read
from bayesgmm.datasets import load
from bayesgmm.em import loop as em
from bayesgmm.em.start import Start, from_labels, starts

# (n, d, k, least distance of two means in sds, family)
SIMULATED = (
    *((2_000, 1, 2, 1.0, "V"), (2_000, 1, 2, 2.0, "V"), (2_000, 1, 3, 2.0, "V")),
    *((2_000, 2, 3, 2.0, "VVV"), (5_000, 2, 5, 2.0, "VVV"), (2_000, 2, 3, 3.0, "VVV")),
    *((3_000, 2, 4, 1.5, "VVI"), (3_000, 3, 3, 2.0, "VEV"), (2_000, 5, 3, 2.0, "VVV")),
    *((4_000, 5, 5, 2.0, "EEE"), (8_000, 5, 8, 2.5, "VVV"), (5_000, 10, 3, 2.0, "VVV")),
    *((5_000, 10, 8, 2.0, "VII"), (100_000, 2, 3, 2.0, "VVV")),
)
SAME = 1e-5  # two log-likelihoods that differ by less are the same optimum
MAX_ITER = 100_000
WAYS: tuple[em.Acceleration | None, ...] = (None, "quasi-newton", "squarem", "anderson")


@dataclass(frozen=True)
class Race:
    """One problem: passes of every way, and its log-likelihood less plain EM's."""

    name: str
    passes: tuple[int, ...]
    difference: tuple[float, ...]


def simulated(n: int, d: int, k: int, apart: float, family: Covariance) -> tuple[Data, Start]:
    """Return spherical components with two means as far apart as said, and their partition."""
    rng = np.random.default_rng([1, d, k])
    mean = rng.normal(size=(k, d)) if d > 1 else np.arange(float(k))[:, None]
    distance = np.linalg.norm(mean[:, None] - mean, axis=2)
    mean *= apart / distance[~np.eye(k, dtype=bool)].min()
    labels = rng.integers(k, size=n)
    data = read(mean[labels] + rng.normal(size=(n, d)), family=family, n_components=k)
    return data, Start("labels", from_labels(data, family, labels, k))


def problems() -> Iterator[tuple[str, Data, Covariance, Start]]:
    """Name, data, family and start."""
    for k, letters in ((2, "VVV"), (3, "VVV"), (4, "VVV"), (3, "EVE"), (4, "VEV"), (6, "EEI")):
        family = Covariance(letters)
        data = read(load("faithful"), family=family, n_components=k)
        rng = np.random.default_rng(1)
        start = starts(data, family, k, start="kmeans", n_starts=1, rng=rng)[0]
        yield f"Old Faithful, K={k}, {letters}", data, family, start
    for n, d, k, apart, letters in SIMULATED:
        family = Covariance(letters)
        data, start = simulated(n, d, k, apart, family)
        yield f"N={n}, D={d}, K={k}, {letters}, {apart:g} sd", data, family, start


def races(threads: int | None = None, tol: float = 1e-4) -> list[Race]:
    """Run every problem in every way."""
    out = []
    for name, data, family, start in problems():
        settings = {"tol": tol, "max_iter": MAX_ITER, "threads": threads}
        runs = [em.run(data, family, start, acceleration=way, **settings) for way in WAYS]
        gap = tuple(run.objective - runs[0].objective for run in runs)
        out.append(Race(name, tuple(run.n_passes for run in runs), gap))
    return out


def table(found: list[Race]) -> str:
    """Return the races as a table, with the geometric means of the ratios to plain EM."""
    head = ["problem", *(way or "plain" for way in WAYS)]
    lines = [head, ["---"] + ["---:"] * len(WAYS)]
    for race in found:
        passes = [
            f"{n}" if abs(gap) < SAME else f"{n} ({gap:+.3g})"
            for n, gap in zip(race.passes, race.difference, strict=True)
        ]
        lines.append([race.name, *passes])
    means = []
    for i in range(len(WAYS)):
        each = [r.passes[0] / r.passes[i] for r in found if abs(r.difference[i]) < SAME]
        means.append(f"{np.exp(np.mean(np.log(each))):.1f} ({len(each)})")
    lines.append(["times fewer than plain", *means])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{text}\n\nIn brackets: where a log-likelihood is another than plain EM's, by how much; "
        "in the last line (geometric means) how many problems end at the same."
    )


def main() -> None:
    """Run the races, print the table, and write it to a page if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = table(races())
    print(text)
    if options.out:
        title = "# EM and its accelerations\n\nWritten by `python -m benchmarks.acceleration`"
        about = (
            "passes over the data until the estimates are within 1e-4 standard errors of their "
            "limit. What a pass and a step take is in [benchmarks](benchmarks.md)"
        )
        options.out.write_text(f"{title}: {about}.\n\n{text}\n")


if __name__ == "__main__":
    main()
