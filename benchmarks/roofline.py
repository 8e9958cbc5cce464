"""Where a pass stands between what it has to do and what the machine can do.

`counted` says what a pass has to do for one observation and one component, `machine.run` what the
machine can do.  Two roofs: arithmetic (a matrix product of BLAS) and memory (the triad).  A product
is all fused multiply-adds, two operations in one instruction; a pass has others, too, which take
a slot of the same units for one operation.  So two shares of the arithmetic roof are given: of
operations, and of instruction slots, which is how busy the units are.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from bayesgmm.moments import accumulate
from benchmarks.problems import QUICK_SIZES, SIZES, problem
from benchmarks.timing import looped, race

EXP_FUSED, EXP_OTHER, EXP_LOGIC = 14, 1, 4  # `simd.Code.exp`


@dataclass(frozen=True)
class Count:
    """Vector instructions for one observation and component, were there one lane to a vector."""

    fused: float  # multiply-adds, two operations each
    other: float  # additions, products, maxima
    logic: float  # on integers, comparisons, choices: no operations, but they take their slot

    @property
    def operations(self) -> float:
        """Floating-point operations, as a matrix product counts them."""
        return 2 * self.fused + self.other

    @property
    def slots(self) -> float:
        """All instructions but those that load and store."""
        return self.fused + self.other + self.logic


def counted(d: int, k: int, diagonal: bool) -> Count:
    """Return what one pass (`onepass.Pass`) does; nothing is skipped.

    residual     d subtractions
    whitening    d (d + 1) / 2 fused; diagonal: d
    log-density  d fused for the square, 1 fused, 1 maximum
    exponential  1 subtraction, the exponential itself, 1 addition to the row's sum
    share        1 product, 1 addition to the component's count
    sums         first: d products, d additions; second: d (d + 1) / 2 fused; diagonal: d
    row          1 division, 1 product under the logarithm, 1 addition: shared by k components
    """
    triangle = d if diagonal else d * (d + 1) // 2
    fused = triangle + d + 1 + EXP_FUSED + triangle
    other = d + 1 + (2 + EXP_OTHER) + 2 + 2 * d + 3 / k
    return Count(fused, other, EXP_LOGIC)


def bytes_moved(d: int, k: int) -> float:
    """Return bytes of memory for the same: a row is read once, and nothing is written."""
    return 8 * d / k


def roof(count: Count, moved: float, gflops: float, gigabytes: float) -> tuple[float, str]:
    """Return the most GFLOP/s that the machine allows, and which of the two roofs that is."""
    memory = count.operations / moved * gigabytes
    return (gflops, "arithmetic") if gflops <= memory else (memory, "memory")


def placed(record: dict[str, float], gflops: float, gigabytes: float) -> dict[str, float | str]:
    """Return where a measured pass stands under the roofs of the machine."""
    d, k = int(record["d"]), int(record["k"])
    count, moved = counted(d, k, bool(record["diagonal"])), bytes_moved(d, k)
    pairs = record["n"] * k / record["seconds"] * 1e-9  # observations times components per ns
    limit, name = roof(count, moved, gflops, gigabytes)
    return {
        "operations": count.operations,
        "intensity": count.operations / moved,
        "ns": 1.0 / pairs,
        "gflops": pairs * count.operations,
        "of_peak": pairs * count.operations / gflops,
        "of_slots": pairs * count.slots / (0.5 * gflops),
        "of_roof": pairs * count.operations / limit,
        "gigabytes": pairs * moved,
        "roof": name,
    }


def run(threads: int, quick: bool) -> dict[str, object]:
    """The pass alone, at every size, triangular and diagonal; separated clusters may skip work."""
    records = []
    for size in QUICK_SIZES if quick else SIZES:
        for structure in ("full", "diag"):
            for regime in ("overlapping", "separated"):
                case = problem(size, structure, regime)
                diagonal = structure == "diag"
                pass_ = looped(
                    lambda c=case, d=diagonal: accumulate(
                        c.x, c.parameters, diagonal=d, threads=threads
                    )
                )
                times = race({"ours": pass_}, budget=0.2 if quick else 1.0)["ours"]
                seconds = float(np.median(times))
                records.append(case.row | {"diagonal": diagonal, "seconds": seconds})
                print(f"  {case.row}: {seconds:.2e}", file=sys.stderr, flush=True)
    return {"records": records, "threads": threads}
