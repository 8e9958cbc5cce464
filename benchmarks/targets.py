"""What was aimed at, beside what was measured in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.roofline import placed
from benchmarks.tables import percent, significant, table

Found = Callable[[str, int], Any]  # the result of a stage with so many threads, or None


@dataclass(frozen=True)
class Race:
    """A ratio of a peer's time to ours that is to be reached at a size."""

    stage: str
    peer: str
    size: tuple[int, int, int]
    least: float


RACES = (
    Race("iteration", "scikit-learn", (1_000_000, 2, 3), 40),
    Race("iteration", "scikit-learn", (200_000, 8, 8), 15),
    Race("iteration", "scikit-learn", (200_000, 32, 16), 10),
    Race("gradient", "pm.Mixture, list of MvNormal", (1_000, 2, 3), 100),
    Race("gradient", "pm.Mixture, batched MvNormal", (1_000, 2, 3), 100),
    Race("gradient", "pm.NormalMixture", (100_000, 1, 3), 3),
    Race("gradient", "JAX, inverse factors", (100_000, 2, 3), 20),
    Race("gradient", "JAX, solve_triangular", (100_000, 2, 3), 20),
)
ROOFS = (
    ("of_roof", "of the roof", (1_000_000, 2, 3), 0.5),
    ("of_peak", "of BLAS's peak", (200_000, 32, 16), 0.6),
)


def _of_size(result: Any, size: tuple[int, int, int], regime: str) -> dict[str, Any] | None:
    for record in result["records"] if result else ():
        is_it = (record["n"], record["d"], record["k"]) == size and record["regime"] == regime
        if is_it and record["structure"] in ("full", "diag" if size[1] == 1 else ""):
            found: dict[str, Any] = record
            return found
    return None


def races(found: Found, threads: tuple[int, ...]) -> str:
    """Return the table of ratios.

    The last column takes the peer's faster setting of threads: libraries that start threads for
    small tasks lose by them.
    """
    rows = []
    for aim in RACES:
        for regime in ("separated", "overlapping"):
            records = [_of_size(found(aim.stage, t), aim.size, regime) for t in threads]
            times = [r["times"] if r and aim.peer in r["times"] else None for r in records]
            if not any(times):
                continue
            peers = [t[aim.peer]["seconds"] for t in times if t]
            ours = [_fastest(t) for t in times if t]
            n, d, k = aim.size
            rows.append(
                [
                    f"{aim.stage}, {aim.peer}",
                    f"({n}, {d}, {k})",
                    regime,
                    f"≥ {significant(aim.least)}",
                    *("–" if t is None else significant(t[aim.peer]["ratio"]) for t in times),
                    significant(min(peers) / min(ours)),
                ]
            )
    head = ["ratio", "(N, D, K)", "clusters", "aim", *map(heading, threads), "best to best"]
    return table(head, rows)


def heading(threads: int) -> str:
    """Return what a column for so many threads is called."""
    return "one thread" if threads == 1 else f"{threads} threads"


def _fastest(times: dict[str, Any]) -> float:
    return min(v["seconds"] for name, v in times.items() if name.startswith("ours"))


def roofs(found: Found, threads: tuple[int, ...]) -> str:
    """Return the table of shares of what the machine can do."""
    rows = []
    for key, text, size, least in ROOFS:
        cells = []
        for t in threads:
            record, peak = _of_size(found("roofline", t), size, "overlapping"), found("machine", t)
            if record is None or peak is None:
                cells.append("–")
                continue
            cells.append(percent(float(placed(record, peak["gflops"], peak["triad_gb"])[key])))
        rows.append([f"pass, share {text}", str(size), f"≥ {percent(least)}", *cells])
    return table(["share", "(N, D, K)", "aim", *map(heading, threads)], rows)
