"""One stage in a process of its own: `python -m benchmarks.child STAGE THREADS OUT [--quick]`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path


def environment(threads: int, cache: str) -> dict[str, str]:
    """Return what limits the thread pools of OpenBLAS, OpenMP, MKL and Numba; read at import.

    ``cache`` is where PyTensor keeps what it compiles.
    """
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
    limits = {f"{name}_NUM_THREADS": str(threads) for name in names}
    return os.environ | limits | {"PYTENSOR_FLAGS": f"base_compiledir={cache}"}


def main(stage: str, threads: int, out: Path, quick: bool) -> None:
    """Run the stage on so many cores, and write what it returns."""
    if hasattr(os, "sched_setaffinity"):
        # The one limit that every library obeys, XLA included.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    result = importlib.import_module(f"benchmarks.{stage}").run(threads, quick)
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), "--quick" in sys.argv[4:])
