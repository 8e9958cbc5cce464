"""The page: every table is made of the raw results, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import cold_start, optimum, targets
from benchmarks.problems import REGIMES, TOUCHING
from benchmarks.roofline import placed
from benchmarks.tables import duration, percent, ratio, significant, table, whole
from benchmarks.timing import AGREEMENT, NULL

Stage = dict[str, Any]


def page(results: dict[str, Any]) -> str:
    """Return the whole page in Markdown."""
    stages: list[Stage] = results["stages"]
    parts = [_opening(results), _how(results), _targets(stages)]
    for name, (title, write) in SECTIONS.items():
        ran = [s for s in stages if s["stage"] == name]
        if not ran:
            continue
        parts.append(f"## {title}")
        for record in ran:
            parts.append(_failure(record) if "error" in record else write(record, stages))
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(results: dict[str, Any]) -> str:
    facts = results["machine"]
    load = results["load"]
    rows = [
        [
            "command",
            f"`{results['command']}`" + (", the quick variant" if results["quick"] else ""),
        ],
        ["date", f"{results['date']}, {duration(results['seconds'])}"],
        ["processor", f"{facts['processor']}, {facts['cores']} cores, {facts['vector units']}"],
        ["caches", ", ".join(f"{k} {v}" for k, v in facts["caches"].items()) or "not told"],
        ["memory", facts.get("memory", "not told")],
        ["system", f"{facts['system']}, Python {facts['python']}"],
        ["versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())],
        ["R", _mclust(results["stages"])],
        ["load at the start", "not told" if load is None else f"{load[0]:.2f} processes"],
    ]
    seconds = [f"{s['stage']} ({s['threads']}) {s['seconds']:.0f} s" for s in results["stages"]]
    rows.append(["stages (threads)", ", ".join(seconds)])
    return (
        "# Benchmarks\n\nWritten by the command below, never by hand; the raw results are in "
        "[benchmarks.json](benchmarks.json).\n\n" + table(["", ""], rows)
    )


def _mclust(stages: list[Stage]) -> str:
    named = [
        s["result"].get("mclust") for s in stages if "result" in s and s["stage"] == "iteration"
    ]
    return next((n for n in named if n), "mclust: not installed" if named else "not asked")


def _how(results: dict[str, Any]) -> str:
    regimes = "; ".join(f"*{name}*: {text}" for name, text in REGIMES.items())
    return f"""## How it is measured

* Contestants get the same data and the same parameters, in one process, and take turns; a ratio is
  the median of the ratios within the turns (peer's time over ours, more is better for us), in
  brackets its quartiles.
* *{NULL}* is a null baseline: our own function a second time, as if it were a peer.
* Before a race, log-likelihoods are compared: it is refused if they differ by more than
  {AGREEMENT:g}, relatively; for gradients, these as well; for an EM iteration, the log-likelihood
  after it as well.
* Every stage is a process of its own. With one thread it is bound to one core, which every library
  obeys; with more, all thread pools (OpenBLAS, OpenMP, XLA, Numba) may use that many. Some of them
  start threads for tasks that are too small; compare a peer's better setting. mclust has no
  threads.
* Clusters: {regimes}; *touching*: the closest two {TOUCHING:g} sds apart."""


def _targets(stages: list[Stage]) -> str:
    def found(name: str, threads: int) -> Any:
        for s in stages:
            if (s["stage"], s["threads"]) == (name, threads):
                return s.get("result")
        return None

    threads = tuple(sorted({s["threads"] for s in stages}))
    return (
        "## What was aimed at\n\nFull covariances; the last column is the peer's faster setting "
        "of threads over our faster one.\n\n"
        f"{targets.races(found, threads)}\n\n{targets.roofs(found, threads)}"
    )


def _failure(record: Stage) -> str:
    said = record["error"].replace("```", "'''")
    return f"### {_threads(record)}\n\n**Failed.**\n\n```text\n{said}\n```"


def _threads(record: Stage) -> str:
    return "One thread" if record["threads"] == 1 else f"{record['threads']} threads"


def _iteration(record: Stage, stages: list[Stage]) -> str:
    result = record["result"]
    peers = ["scikit-learn", *(["mclust"] if result["mclust"] else [])]
    rows = []
    for r in result["records"]:
        times = r["times"]
        cells = [whole(r["n"]), r["d"], r["k"], r["structure"], r["regime"]]
        cells.append(duration(times["ours"]["seconds"]))
        for peer in peers:
            timed = times.get(peer)
            cells += [duration(timed["seconds"]) if timed else "–", ratio(timed)]
        rows.append([*cells, ratio(times[NULL])])
    head = ["N", "D", "K", "covariances", "clusters", "ours"]
    for peer in peers:
        head += [peer, "ratio"]
    worst = max(r["difference"] for r in result["records"])
    missing = "" if record["threads"] > 1 or result["mclust"] else " mclust: not installed."
    return (
        f"### {_threads(record)}\n\nA pass over the data and the M-step. Largest relative "
        f"difference of log-likelihoods: {worst:.1e}.{missing}\n\n{table([*head, NULL], rows)}"
    )


def _optimum(record: Stage, stages: list[Stage]) -> str:
    rows = []
    for r in record["result"]["records"]:
        for name, fit in r["fits"].items():
            timed = r["times"].get(name)
            rows.append(
                [
                    whole(r["n"]),
                    r["d"],
                    r["k"],
                    r["structure"],
                    name,
                    f"{fit['tol']:g}",
                    whole(fit["passes"]),
                    f"{fit['gap']:.1e}",
                    duration(timed["seconds"]) if timed else "not reached",
                    ratio(timed),
                ]
            )
    head = ["N", "D", "K", "covariances", "who", "tolerance", "passes", "gap", "time", "ratio"]
    return (
        f"### {_threads(record)}\n\nFrom one start; the tolerance is the loosest power of ten that "
        f"ends less than {optimum.GAP:g} below the log-likelihood of plain EM's limit; *gap* is "
        f"where it ended above that. Touching clusters.\n\n{table(head, rows)}"
    )


def _gradient(record: Stage, stages: list[Stage]) -> str:
    result = record["result"]
    rows = []
    for r in result["records"]:
        for name, entry in r["times"].items():
            rows.append(
                [
                    whole(r["n"]),
                    r["d"],
                    r["k"],
                    r["regime"],
                    name,
                    duration(entry["seconds"]),
                    ratio(entry),
                ]
            )
    values = max(r["difference"] for r in result["records"])
    slopes = max(r["gradient_difference"] for r in result["records"])
    missing = "" if result["jax"] else " JAX and NumPyro: not installed."
    head = ["N", "D", "K", "clusters", "who", "time", "ratio"]
    return (
        f"### {_threads(record)}\n\nBy log-weights, means and covariances. What Numba has "
        f"compiled is called from compiled code, as a sampler calls it; JAX and *all cores* from "
        f"Python. Largest relative difference of values: {values:.1e}, of gradients: "
        f"{slopes:.1e}.{missing}\n\n"
        f"{table(head, rows)}"
    )


def _sampling(record: Stage, stages: list[Stage]) -> str:
    result = record["result"]
    rows = []
    for r in result["records"]:
        if "missing" in r:
            rows.append([r["engine"], r["missing"], *[""] * 6])
            continue
        total = r["seconds"]["total"]
        alone = r["seconds"].get("sampling")
        rows.append(
            [
                r["engine"],
                r["caches"],
                duration(total),
                duration(alone) if alone else "–",
                whole(r["ess"]),
                significant(r["ess"] / total),
                f"{r['rhat']:.3f}",
                f"{r['z']:.1f}",
            ]
        )
    s = result["settings"]
    head = ["who", "caches", "whole", "sampling", "least ESS", "ESS per second", "R-hat", "z"]
    return (
        f"Old Faithful, K = 2, full covariances, the same prior for all; {s['chains']} chains of "
        f"{s['tune']} + {s['draws']}, target {s['target_accept']}, {result['threads']} cores. "
        "*whole* begins before the import and ends with the draws (ours: with alignment, "
        "diagnostics and LOO); *least ESS* is of weights, means and covariances, components by "
        "their first mean; *z* is by how many Monte Carlo standard errors the posterior means "
        f"differ from ours at most.\n\n{table(head, rows)}"
    )


def _growth(record: Stage, stages: list[Stage]) -> str:
    result = record["result"]
    pieces = []
    for axis in ("n", "d", "k"):
        rows = [
            [
                whole(r["n"]),
                r["d"],
                r["k"],
                r["regime"],
                duration(r["seconds"]),
                significant(r["ns"]),
            ]
            for r in result["records"]
            if r["axis"] == axis
        ]
        head = ["N", "D", "K", "clusters", "pass", "ns per observation and component"]
        pieces.append(f"### Along {axis.upper()}\n\n{table(head, rows)}")
    of = result["memory_of"]
    names = list(dict.fromkeys(m["engine"] for m in result["memory"]))
    sizes = list(dict.fromkeys(m["n"] for m in result["memory"]))
    taken = {(m["engine"], m["n"]): m["bytes"] / 2**20 for m in result["memory"]}
    rows = [[whole(n), *(f"{taken[name, n]:.1f}" for name in names)] for n in sizes]
    pieces.append(
        f"### Memory\n\nMiB that one pass adds at its peak to a process that holds the data "
        f"(D = {of['d']}, K = {of['k']}), to about 0.3.\n\n{table(['N', *names], rows)}"
    )
    return "\n\n".join(pieces)


def _roofline(record: Stage, stages: list[Stage]) -> str:
    peaks = [
        s["result"]
        for s in stages
        if (s["stage"], s["threads"]) == ("machine", record["threads"]) and "result" in s
    ]
    if not peaks:
        return f"### {_threads(record)}\n\n**Not placed**: the machine's peaks were not measured."
    gflops, gigabytes = peaks[0]["gflops"], peaks[0]["triad_gb"]
    rows = []
    for r in record["result"]["records"]:
        place = placed(r, gflops, gigabytes)
        rows.append(
            [
                *(whole(r["n"]), r["d"], r["k"], "diagonal" if r["diagonal"] else "triangular"),
                *(r["regime"], significant(float(place["ns"])), whole(float(place["operations"]))),
                *(significant(float(place[name])) for name in ("gflops", "intensity")),
                *(percent(float(place[name])) for name in ("of_peak", "of_slots", "of_roof")),
                place["roof"],
            ]
        )
    head = ["N", "D", "K", "structure", "clusters", "ns", "operations", "GFLOP/s", "per byte"]
    head += ["of BLAS's peak", "of slots", "of the roof", "roof"]
    return (
        f"### {_threads(record)}\n\nPeaks, measured in this run: {significant(gflops)} GFLOP/s in "
        f"a matrix product of BLAS, {significant(gigabytes)} GB/s in the triad. *ns* and "
        "*operations* are for one observation and component. *of slots*: instructions over what "
        "the units can begin, a product's two operations in one; processors that add on units of "
        "their own can pass 100 %. Operations are counted as if nothing were skipped, so separated "
        f"clusters may show more than is computed.\n\n{table(head, rows)}"
    )


def _machine(record: Stage, stages: list[Stage]) -> str:
    peak = record["result"]
    return (
        f"{_threads(record)}: {significant(peak['gflops'])} GFLOP/s, "
        f"{significant(peak['triad_gb'])} GB/s."
    )


def _cold_start(record: Stage, stages: list[Stage]) -> str:
    repeats = record["result"]["repeats"]
    return (
        "Old Faithful, in seconds; cold: empty caches of Numba and PyTensor, warm: those that the "
        f"cold run left. Medians of {repeats}.\n\n{cold_start.tables(record['result'])}"
    )


SECTIONS: dict[str, tuple[str, Callable[[Stage, list[Stage]], str]]] = {
    "iteration": ("One EM iteration", _iteration),
    "optimum": ("To the same optimum", _optimum),
    "gradient": ("Value and gradient of the log-likelihood", _gradient),
    "sampling": ("Effective draws per second, end to end", _sampling),
    "growth": ("Growth, and memory", _growth),
    "machine": ("What the machine can do", _machine),
    "roofline": ("Roofline", _roofline),
    "cold_start": ("How long one waits", _cold_start),
}
