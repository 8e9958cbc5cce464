"""Time from a cold start to the finished comparison on Old Faithful, and where it goes.

Each run is a new process. Cold: empty caches of Numba and PyTensor; warm: those that the cold run
left. Run with nothing else on the machine: ``python benchmarks/cold_start.py``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys, time
began = last = time.perf_counter()
laps = {}
def lap(name):
    global last
    now = time.perf_counter(); laps[name] = now - last; last = now
import bayesgmm as bg
X = bg.datasets.load("faithful")
spec = bg.GaussianMixture(2, "VVV")
bg.fit_em
lap("import (EM side)")
mle = bg.fit_em(spec, X, random_seed=1)
lap("EM, 10 starts, standard errors")
bg.sample_posterior
lap("import (PyMC, nutpie)")
post = bg.sample_posterior(spec, X, mle=mle, random_seed=1, progressbar=False)
split = json.loads(post.attrs["timings"])
laps["compile"] = split["em"] + split["compile"]
laps["sampling, 4 x (1000 + 1000)"] = split["sampling"]
laps["alignment, verdict, LOO"] = split["summary"]
last = time.perf_counter()
bg.compare, bg.report
lap("import (plots)")
comparison = bg.compare(mle, post)
bg.report(comparison, sys.argv[1], mle=mle, post=post)
lap("comparison and report")
laps["total"] = time.perf_counter() - began
print(json.dumps(laps))
"""


def run(cache: Path, page: Path) -> dict[str, float]:
    """One comparison in a new process with its caches in ``cache``."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(cache / "numba"),
        "PYTENSOR_FLAGS": f"base_compiledir={cache / 'pytensor'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(page)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def main(repeats: int = 3) -> None:
    """Print the table: medians over the repeats."""
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            runs["cold"].append(run(place, place / "report.html"))
            runs["warm"].append(run(place, place / "report.html"))
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter([platform.processor()]),
    )
    print(f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}; ", end="")
    print(f"seconds, median of {repeats}\n")
    print("| | cold caches | warm caches |\n| --- | ---: | ---: |")
    for name in runs["cold"][0]:
        cells = [sorted(r[name] for r in runs[kind])[repeats // 2] for kind in ("cold", "warm")]
        print(f"| {name} | {cells[0]:.1f} | {cells[1]:.1f} |")


if __name__ == "__main__":
    main()
