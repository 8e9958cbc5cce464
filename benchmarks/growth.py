"""How the cost of a pass grows with N, D and K, and how much memory it takes beyond the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from bayesgmm.moments import accumulate
from benchmarks.problems import problem
from benchmarks.timing import looped, race

GROWING = {
    "n": [(n, 2, 3) for n in (300, 1_000, 10_000, 100_000, 1_000_000)],
    "d": [(20_000, d, 4) for d in (1, 2, 4, 8, 16, 32, 64, 100)],
    "k": [(50_000, 4, k) for k in (1, 2, 4, 8, 16, 32, 64)],
}
MEMORY = {"n": (100_000, 400_000, 1_600_000), "d": 4, "k": 8}


def peak() -> int:
    """Most memory this process has had since `forget_peak`, in bytes; Linux tells exactly."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def forget_peak() -> None:
    """Let the peak begin again at what is used now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("  the peak cannot be reset: it is that of the whole process", file=sys.stderr)


def memory_of(name: str, n: int, threads: int) -> int:
    """Bytes that one pass adds to a process that has the data, and has made a smaller pass."""
    from benchmarks.peers import Sklearn

    d, k = int(MEMORY["d"]), int(MEMORY["k"])  # type: ignore[call-overload]
    small, large = (problem((rows, d, k), "full", "overlapping") for rows in (1_000, n))
    for case in (small, large):
        if name == "ours":
            function = lambda case=case: accumulate(case.x, case.parameters, threads=threads)  # noqa: E731
        else:
            function = Sklearn(case).iteration
        forget_peak()
        before = peak()
        function()
    return peak() - before


def _memory_in_process(name: str, n: int, threads: int) -> int:
    arguments = [sys.executable, "-m", "benchmarks.growth", name, str(n), str(threads)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}, {n}: {done.stderr.strip()[-800:]}")
    return int(json.loads(done.stdout))


def run(threads: int, quick: bool) -> dict[str, object]:
    """Nanoseconds per observation and component along each axis, and memory by N."""
    records = []
    for axis, sizes in GROWING.items():
        for size in sizes[:-2] if quick else sizes:
            for regime in ("separated", "overlapping") if size[2] > 1 else ("separated",):
                case = problem(size, "full", regime)
                pass_ = looped(lambda c=case: accumulate(c.x, c.parameters, threads=threads))
                times = race({"ours": pass_}, budget=0.1 if quick else 0.5)["ours"]
                seconds = float(np.median(times))
                n, _, k = size
                records.append(
                    case.row | {"axis": axis, "seconds": seconds, "ns": 1e9 * seconds / (n * k)}
                )
        print(f"  {axis}", file=sys.stderr, flush=True)
    memory = [
        {"engine": name, "n": n, "bytes": _memory_in_process(name, n, threads)}
        for n in (MEMORY["n"][:2] if quick else MEMORY["n"])  # type: ignore[index]
        for name in ("ours", "scikit-learn")
    ]
    return {"records": records, "memory": memory, "memory_of": MEMORY}


if __name__ == "__main__":
    print(json.dumps(memory_of(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
