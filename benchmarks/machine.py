"""The machine: what it is, and what it can do at most (measured, not looked up)."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numba import njit

PACKAGES = (
    *("bayesgmm", "numpy", "scipy", "numba", "llvmlite", "scikit-learn", "pymc", "pytensor"),
    *("nutpie", "jax", "numpyro"),
)


def describe() -> dict[str, object]:
    """Return processor, cores, caches, memory and versions; what cannot be told is left out."""
    facts: dict[str, object] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": cores(),
        "caches": _caches(),
        "vector units": _vector_units(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory"] = f"{total / 2**30:.0f} GiB"
    return facts


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> list[float] | None:
    """Return how many processes wanted a core in the last 1, 5 and 15 minutes."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    for field in ("model name", "Hardware"):
        for line in _lines(Path("/proc/cpuinfo")):
            if line.startswith(field):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def _vector_units() -> str:
    known = ("avx2", "fma", "avx512f", "asimd", "sve")
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith(("flags", "Features")):
            words = set(line.split(":", 1)[1].split())
            return ", ".join(name for name in known if name in words)
    return platform.machine()


def _caches() -> dict[str, str]:
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            "".join(_lines(folder / name)).strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found[f"L{level}"] = size.replace("K", " KiB")
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@njit(nogil=True, fastmath=True)
def _triad(a, b, c, begin, end):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        a[i] = b[i] + 3.0 * c[i]


def _best(function: Callable[[], object], seconds: float) -> float:
    """Return the shortest of many timings: a peak is what nothing has disturbed."""
    function()
    shortest, began = np.inf, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        function()
        shortest = min(shortest, time.perf_counter() - start)
    return float(shortest)


def run(threads: int, quick: bool) -> dict[str, object]:
    """Peak of arithmetic (matrix product of BLAS) and of memory (triad over three long arrays)."""
    n = 1000 if quick else 2000
    a, b, out = np.ones((n, n)), np.ones((n, n)), np.empty((n, n))
    duration = 1.0 if quick else 4.0
    product = _best(lambda: np.matmul(a, b, out=out), duration)
    length = 1 << (23 if quick else 26)
    long = [np.ones(length) for _ in range(3)]
    edges = np.linspace(0, length, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:

        def each(function: Callable[..., object], *arrays: object) -> Callable[[], object]:
            return lambda: list(
                pool.map(lambda i: function(*arrays, edges[i], edges[i + 1]), range(threads))
            )

        triad = _best(each(_triad, *long), duration)
    return {
        "gflops": 2e-9 * n**3 / product,
        "triad_gb": 24e-9 * length / triad,
        "load": load(),
    }
