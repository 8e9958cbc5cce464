"""Effective draws per second over sizes: `python -m benchmarks.sampling_grid --out FILE`.

Each sampler as it comes: ours with 500 + 1000 draws of four chains, PyMC under nutpie and NumPyro
with 1000 + 1000; the acceptance each aims at by default.  Each runs in a process of its own, and
the clock starts before the import, so that compilation counts; what was compiled for a smaller
problem of as many columns is found again where the library can.  Where that would take long,
others make fewer draws: with a shorter warm-up, too, which flatters them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.problems import problem
from benchmarks.samplers import ENGINES, NEEDS, Case, caches, judged, largest_z
from benchmarks.tables import duration, significant, table, whole

OURS, STOCK = "ours", "pm.Mixture, nutpie"
SIZES = (272, 1_000, 10_000, 100_000)
COLUMNS = (2, 1, 5)
_NUMBERS = 10_000  # of data, up to which others make all their draws
_FEWEST = 50
_LIMIT = 240.0  # seconds for one run
_MIXED = 1.05  # R-hat beyond which draws are worth nothing
AIMS = ((272, 2, 10.0), (10_000, 2, 50.0))  # times stock PyMC


def case(n: int, d: int, engine: str) -> Case:
    """Return the problem of a size, with as many draws as an engine makes of it."""
    if n == 272 and d < 3:
        from bayesgmm import datasets  # reads a file, and imports nothing else

        frame = datasets.load("faithful")
        x, k = frame.to_numpy(dtype=float)[:, -d:], 2
    else:
        x, k = problem((n, d, 3), "full", "touching").x, 3
    sd = x.std(axis=0)
    prior = (x.mean(axis=0), 2.0 * sd, np.log(0.5 * sd))
    if engine == OURS:
        return Case(x, k, *prior, draws=1000, tune=500, target_accept=0.9, loo=False)
    draws = int(np.clip(1000 * _NUMBERS / (n * d), _FEWEST, 1000))
    return Case(np.ascontiguousarray(x), k, *prior, draws=draws, tune=draws, target_accept=0.8)


def child(engine: str, n: int, d: int, cores: int, out: Path) -> None:
    """Sample, and write times and what the draws are worth; the judging is not timed."""
    began = time.perf_counter()
    found = ENGINES[engine](case(n, d, engine), cores)
    total = time.perf_counter() - began
    record = {"total": total, "sampling": found.seconds, "gradients": found.gradients}
    out.write_text(json.dumps(record | judged(found.draws)))


def run(engine: str, n: int, d: int, cores: int, folder: str) -> dict[str, Any]:
    """Return what one run measured, or why there is nothing."""
    record: dict[str, Any] = {"engine": engine, "n": n, "d": d}
    if find_spec(NEEDS[engine]) is None:
        return record | {"missing": "not installed"}
    out = Path(folder) / "result.json"
    sizes = [engine, str(n), str(d), str(cores), str(out)]
    command = [sys.executable, "-m", "benchmarks.sampling_grid", "--child", *sizes]
    try:
        done = subprocess.run(
            command,
            env=os.environ | caches(folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return record | {"missing": f"not within {_LIMIT:.0f} s"}
    if done.returncode != 0:
        return record | {"missing": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    draws = case(n, d, engine)
    return record | {"draws": draws.draws, "tune": draws.tune} | json.loads(out.read_text())


def measure(sizes: list[int], columns: list[int], cores: int) -> Iterator[dict[str, Any]]:
    """Yield the records of all runs; Old Faithful is run once more at the end, caches warm."""
    cells = [(n, d, False) for d in columns for n in sizes]
    if (272, 2, False) in cells:
        cells.append((272, 2, True))
    with tempfile.TemporaryDirectory() as folder:
        seen = set()
        for n, d, again in cells:
            for engine in ENGINES:
                print(f"  {engine}: {n} rows, {d} columns", file=sys.stderr, flush=True)
                found = run(engine, n, d, cores, folder)
                # Ours is compiled once for all of these; others anew for every number of columns.
                key = (engine, 0 if engine == OURS else d)
                found["caches"] = "warm" if again or key in seen else "cold"
                seen.add(key)
                yield found


def _rate(record: dict[str, Any] | None) -> float | None:
    """Effective draws per second, end to end; None where chains have not mixed."""
    if record is None or "missing" in record or not record["rhat"] < _MIXED:
        return None
    return float(record["ess"] / record["total"])


def _lines(records: list[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Return the head and the rows of the table of what was measured."""
    head = ["rows", "columns", "who", "caches", "draws", "whole", "least ESS", "R-hat", "z"]
    head += ["ESS per second", "gradients per ESS", "ours : this"]
    rows: list[list[object]] = []
    for i, r in enumerate(records):
        base = max((j for j in range(i + 1) if records[j]["engine"] == OURS), default=i)
        row = [whole(r["n"]), r["d"], r["engine"], r["caches"]]
        if "missing" in r:
            rows.append([*row, r["missing"], *[""] * (len(head) - 5)])
            continue
        mine, own = _rate(records[base]), _rate(r)
        z = "–" if "missing" in records[base] else f"{largest_z(records[base], r):.1f}"
        rows.append(
            [
                *row,
                f"{r['tune']} + {r['draws']}",
                duration(r["total"]),
                whole(r["ess"]),
                f"{r['rhat']:.3f}",
                z,
                "not mixed" if own is None else significant(own),
                significant(r["gradients"] / r["ess"]),
                "–" if mine is None or own is None else significant(mine / own),
            ]
        )
    return head, rows


def _made(results: dict[str, Any]) -> str:
    facts = results["machine"]
    return (
        f"by `{results['command']}` on {facts['processor']}, {facts['cores']} cores, "
        f"in {duration(results['seconds'])}; load before it: {results['load']}."
    )


def page(results: dict[str, Any]) -> str:
    """Return the page; with a later run of some sizes, if there is one, in a section of its own."""
    records = results["records"]
    head, rows = _lines(records)
    aims = [_aim(records, *aim) for aim in AIMS]
    how = (
        "One mixture with a covariance of its own for each component, K = 2 (Old Faithful: 272 "
        "rows, 1 and 2 columns) or 3 (simulated, centres 3 sds apart); one prior for all. Each "
        "sampler as it comes, four chains: ours with 500 + 1000 draws, others with 1000 + 1000, or "
        "fewer (with the shorter warm-up, in their favour). *whole* begins before the import and "
        "ends with the draws (ours: EM, alignment and diagnostics included, LOO not). *least ESS* "
        "is of weights, means and covariances, components by their first mean. *z*: by how many "
        "Monte Carlo standard errors posterior means differ from ours at most. *gradients per "
        "ESS* are those after the warm-up. *ours : this* compares ESS per second. Chains with an "
        f"R-hat of {_MIXED} or more are worth nothing."
    )
    stan = "Stan is not here: its compiler was not to be had where this was written."
    made = f"Written {_made(results)}"
    parts = ["# Effective draws per second", made, how, stan, table(head, rows)]
    last = ["rows", "columns", "times stock PyMC", "aim", "cold caches", "warm"]
    parts += ["## What was aimed at", table(last, aims)]
    if again := results.get("again"):
        intro = f"Some sizes once more, later, {_made(again)} Compare within this table only."
        aims = [_aim(again["records"], *aim) for aim in AIMS]
        rows = [aim for aim in aims if set(aim[-2:]) != {"–"}]
        parts += ["## Once more", intro, table(*_lines(again["records"])), table(last, rows)]
    return "\n\n".join(parts) + "\n"


def _aim(records: list[dict[str, Any]], n: int, d: int, least: float) -> list[object]:
    """Return an aim beside what was measured, by state of the caches."""
    row: list[object] = [whole(n), d, "ESS per second", f"≥ {significant(least)}"]
    for state in ("cold", "warm"):
        of = {
            r["engine"]: _rate(r) for r in records if (r["n"], r["d"], r["caches"]) == (n, d, state)
        }
        mine, other = of.get(OURS), of.get(STOCK)
        row.append("–" if mine is None or other is None else significant(mine / other))
    return row


def main() -> None:
    """Run the grid, and write the page and the numbers beside it."""
    if sys.argv[1:2] == ["--child"]:
        engine, n, d, cores, out = sys.argv[2:]
        child(engine, int(n), int(d), int(cores), Path(out))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling_grid", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/sampling.md"))
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--columns", type=int, nargs="+", default=list(COLUMNS))
    parser.add_argument(
        "--again", action="store_true", help="in a section of the page that is there"
    )
    arguments = parser.parse_args()
    began = time.perf_counter()
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.sampling_grid", *sys.argv[1:]]),
        "machine": machine.describe(),
        "load": machine.load(),
        "records": [],
    }
    whole_page = results
    if arguments.again:
        whole_page = json.loads(arguments.out.with_suffix(".json").read_text())
        whole_page["again"] = results
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for record in measure(arguments.rows, arguments.columns, machine.cores()):
        results["records"].append(record)
        results["seconds"] = time.perf_counter() - began
        # After every run, for a run takes minutes and there are dozens.
        arguments.out.with_suffix(".json").write_text(json.dumps(whole_page, indent=1) + "\n")
        arguments.out.write_text(page(whole_page))


if __name__ == "__main__":
    main()
