"""How long one waits: for the first draw, and for a whole comparison, on Old Faithful.

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
from statistics import median

Laps = dict[str, float]

# The first draw: from the call to the end of a run that makes one draw after one step of tuning.
FIRST_DRAW = {
    "bayesgmm": """
import json, time, warnings
began = time.perf_counter()
import bayesgmm as bg
sample, spec = bg.sample_posterior, bg.GaussianMixture(2, "VVV")
laps = {"import": time.perf_counter() - began}
X = bg.datasets.load("faithful")
warnings.simplefilter("ignore")  # that one draw should not be relied on
for name in ("first draw", "again in one process"):
    fit = sample(spec, X, draws=1, tune=1, chains=1, random_seed=1, progressbar=False)
    split = json.loads(fit.attrs["timings"])
    laps[name] = sum(split[part] for part in ("em", "start", "sampling"))
print(json.dumps(laps))
""",
    # A plain mixture of two normals; it starts where PyMC does, at no cost.
    "PyMC by nutpie": """
import json, time, warnings
warnings.simplefilter("ignore")
began = time.perf_counter()
import pymc as pm, nutpie
laps = {"import": time.perf_counter() - began}
import numpy as np
from bayesgmm import datasets  # reads a file, and imports nothing else
x = np.ascontiguousarray(datasets.load("faithful").to_numpy(dtype=float))
for name in ("first draw", "again in one process"):
    began = time.perf_counter()
    with pm.Model() as model:
        weight = pm.Dirichlet("weight", np.ones(2))
        mean = pm.Normal("mean", x.mean(axis=0), 2 * x.std(axis=0), shape=(2, 2))
        parts = []
        for j in range(2):
            sd = pm.LogNormal.dist(np.log(x.std(axis=0) / 2), 0.75, shape=2)
            factor = pm.LKJCholeskyCov(f"factor_{j}", eta=2.0, n=2, sd_dist=sd)[0]
            parts.append(pm.MvNormal.dist(mean[j], chol=factor))
        pm.Mixture("x", w=weight, comp_dists=parts, observed=x)
    compiled = nutpie.compile_pymc_model(model)
    nutpie.sample(compiled, draws=1, tune=1, chains=1, seed=1, progress_bar=False)
    laps[name] = time.perf_counter() - began
print(json.dumps(laps))
""",
}

COMPARISON = """
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
lap("EM, standard errors")
bg.sample_posterior
lap("import (nutpie, ArviZ)")
post = bg.sample_posterior(spec, X, mle=mle, random_seed=1, progressbar=False)
split = json.loads(post.attrs["timings"])
laps["to the first draw"] = split["em"] + split["start"]
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


def in_process(code: str, folder: Path) -> Laps:
    """Laps of a new process with its caches in the folder."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "PYTENSOR_FLAGS": f"base_compiledir={folder / 'pytensor'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "report.html")],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def cold_and_warm(code: str, repeats: int) -> dict[str, Laps]:
    """Median laps with empty caches, and with those that the run before has left."""
    runs: dict[str, list[Laps]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for each in runs.values():
                each.append(in_process(code, Path(folder)))
    return {
        kind: {name: median(laps[name] for laps in each) for name in each[0]}
        for kind, each in runs.items()
    }


def run(threads: int, quick: bool) -> dict[str, object]:
    """Everything measured: seconds by sampler, or of the comparison, by cache and by lap.

    The number of threads is for processes to respect, not for this one.
    """
    repeats = 1 if quick else 3
    samplers = {name: cold_and_warm(code, repeats) for name, code in FIRST_DRAW.items()}
    whole = cold_and_warm(COMPARISON, repeats)
    return {"repeats": repeats, "first draw": samplers, "comparison": whole}


def table(head: list[str], rows: dict[str, list[float]]) -> str:
    """A Markdown table of seconds."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for name, seconds in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{s:.2f}' for s in seconds)} |")
    return "\n".join(lines)


def tables(measured: dict[str, object]) -> str:
    """What `run` has measured, to read."""
    samplers, whole = measured["first draw"], measured["comparison"]
    assert isinstance(samplers, dict)
    assert isinstance(whole, dict)
    head = [f"{name}, {kind}" for name in samplers for kind in ("cold", "warm")]
    laps = next(iter(samplers.values()))["cold"]
    first = {
        lap: [samplers[name][kind][lap] for name in samplers for kind in ("cold", "warm")]
        for lap in laps
    }
    comparison = {lap: [whole[kind][lap] for kind in ("cold", "warm")] for lap in whole["cold"]}
    return "\n\n".join(
        [table(["", *head], first), table(["", "cold caches", "warm caches"], comparison)]
    )


def processor() -> str:
    """The processor's name."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure and print."""
    cores = os.cpu_count() or 1
    measured = run(cores, "--quick" in sys.argv[1:])
    print(f"{processor()}, {cores} cores, Python {platform.python_version()}; ", end="")
    print(f"seconds, medians of {measured['repeats']}\n")
    print(tables(measured))


if __name__ == "__main__":
    main()
