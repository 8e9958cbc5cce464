"""Effective draws per second, end to end: Old Faithful, two full covariances, one model in all.

Every sampler gets the same settings. Each runs in a process of its own, first with empty caches and
then with those that the first run left; the clock starts before the import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.samplers import CHAINS, ENGINES, NEEDS, Case, caches, judged, largest_z

SETTINGS = {"draws": 1000, "tune": 1000, "chains": CHAINS, "target_accept": 0.9}
FARTHEST = 6.0  # Monte Carlo standard errors between two samples of one posterior


def faithful() -> Case:
    """Return Old Faithful, with a prior in units of the data."""
    from bayesgmm import datasets  # reads a file, and imports nothing else

    x = np.ascontiguousarray(datasets.load("faithful").to_numpy(dtype=float))
    prior = (np.array([3.5, 70.0]), np.array([2.0, 25.0]), np.array([-0.5, 2.0]))
    return Case(x, 2, *prior, draws=1000, tune=1000, target_accept=0.9)


def child(name: str, cores: int, out: Path) -> None:
    """Sample, and write times and what the draws are worth; the judging is not timed."""
    began = time.perf_counter()
    found = ENGINES[name](faithful(), cores)
    laps = {"sampling": found.seconds} if found.seconds is not None else {}
    laps["total"] = time.perf_counter() - began
    out.write_text(json.dumps({"seconds": laps} | judged(found.draws)))


def run(threads: int, quick: bool) -> dict[str, object]:
    """Every sampler, cold and warm; the quick run leaves out the one that compiles for minutes."""
    records = []
    for name in ENGINES:
        if find_spec(NEEDS[name]) is None:
            records.append({"engine": name, "missing": "not installed"})
            continue
        if quick and name == "pm.Mixture, nutpie":
            records.append({"engine": name, "missing": "left out of the quick run"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold",) if quick else ("cold", "warm"):
                print(f"  {name}, {state}", file=sys.stderr, flush=True)
                result = _in_process(name, threads, Path(folder))
                records.append({"engine": name, "caches": state} | result)
    ran = [r for r in records if "mean" in r]
    for record in ran:
        record["z"] = largest_z(ran[0], record)
        if not record["z"] < FARTHEST:
            raise AssertionError(f"{record['engine']} samples another posterior: z = {record['z']}")
    return {"records": records, "threads": threads, "settings": SETTINGS}


def _in_process(name: str, threads: int, folder: Path) -> dict[str, Any]:
    environment = os.environ | caches(str(folder))
    out = folder / "result.json"
    arguments = [sys.executable, "-m", "benchmarks.sampling", name, str(threads), str(out)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr.strip()[-800:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
