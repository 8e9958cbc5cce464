"""`python -m benchmarks [--quick] [--only STAGE ...] [--out FOLDER]`: measure, and write the page.

Every stage runs in a process of its own, so that limits on threads hold from the first import and
memory is its own.  A stage that fails is on the page with its error, and makes the command fail.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.child import environment

ROOT = Path(__file__).resolve().parent.parent
ONE, ALL = "one", "all"
STAGES = (
    *(("iteration", ONE), ("iteration", ALL), ("optimum", ONE), ("optimum", ALL)),
    *(("gradient", ONE), ("gradient", ALL), ("sampling", ALL), ("growth", ONE)),
    *(("machine", ONE), ("roofline", ONE), ("machine", ALL), ("roofline", ALL)),
    ("cold_start", ALL),
)
SLOW = (("optimum", ALL), ("gradient", ALL), ("cold_start", ALL))  # not in the quick run
LIMIT = 2700.0  # seconds for one stage


def stage(name: str, threads: int, quick: bool, cache: str) -> dict[str, Any]:
    """Return what a stage measured, or the end of what it said when it failed."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.child", name, str(threads), str(out)]
        last: deque[str] = deque(maxlen=12)
        with subprocess.Popen(
            command + ["--quick"] * quick,
            cwd=ROOT,
            env=environment(threads, cache),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            timer = threading.Timer(LIMIT, process.kill)
            timer.start()
            assert process.stderr
            for line in process.stderr:
                last.append(line.rstrip())
                print(line, end="", file=sys.stderr, flush=True)
            code = process.wait()
            timer.cancel()
        record: dict[str, Any] = {"stage": name, "threads": threads}
        record["seconds"] = time.perf_counter() - began
        if code == 0 and out.exists():
            return record | {"result": json.loads(out.read_text())}
        reason = f"exit status {code} after {record['seconds']:.0f} of at most {LIMIT:.0f} seconds"
        return record | {"error": "\n".join([*last, reason])}


def main() -> int:
    """Run the stages, and write the page and the raw results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute or two")
    parser.add_argument(
        "--only", nargs="+", metavar="STAGE", choices=sorted({s for s, _ in STAGES})
    )
    parser.add_argument("--out", type=Path, help="default: docs, of a partial run build/benchmarks")
    arguments = parser.parse_args()
    is_whole = not (arguments.quick or arguments.only)
    out = arguments.out or ROOT / ("docs" if is_whole else "build/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    cores = machine.cores()
    results: dict[str, Any] = {
        "command": " ".join(
            ["make bench", *(f'ARGS="{" ".join(a)}"' for a in [sys.argv[1:]] if a)]
        ),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": machine.load(),
        "machine": machine.describe(),
        "quick": arguments.quick,
        "stages": [],
    }
    began = time.perf_counter()
    # What PyTensor compiles is the run's own: nothing that another version left behind is used.
    cache = tempfile.TemporaryDirectory()
    for name, wanted in STAGES:
        if arguments.only and name not in arguments.only:
            continue
        if arguments.quick and (name, wanted) in SLOW and not arguments.only:
            continue
        if wanted == ALL and cores == 1 and (name, ONE) in STAGES:
            continue
        threads = 1 if wanted == ONE else cores
        print(f"{name}, {threads} threads", file=sys.stderr, flush=True)
        results["stages"].append(stage(name, threads, arguments.quick, cache.name))
        results["seconds"] = time.perf_counter() - began
        # Written after every stage: an interrupted run leaves what it has measured.
        (out / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "benchmarks.md").write_text(report.page(results))
    cache.cleanup()
    failed = [s["stage"] for s in results["stages"] if "error" in s]
    print(f"{out / 'benchmarks.md'}; failed: {', '.join(failed) or 'none'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
