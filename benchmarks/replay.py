"""What a finished run costs when it is run again: every call is a cache hit.

    python benchmarks/replay.py [PROMPTS]

PROMPTS (2,000; 12,500 make 100,000 calls) go through the run of `benchmarks/scheduler.py`, then through the same run in
another folder, in a process of its own. No model is opened the second time.

Reading the line of JSON: `seconds` is the second run from reading the run file to its summary, `cpu_seconds` its
processor time; `ratio` is the processor time of the first run ÷ that of the second (an engine that takes no time: what
a model would add comes on top); `per_100k_calls` is `seconds` scaled to 100,000 calls.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scheduler import run, write_workspace


def child(run_file: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "only", str(run_file), name]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:2] == ["only"]:
        cpu = time.process_time()
        summary = run(Path(sys.argv[2]), sys.argv[3])
        cpu = time.process_time() - cpu
        print(json.dumps({"calls": summary["calls"], "seconds": summary["wall"], "cpu_seconds": cpu}))
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        run_file = write_workspace(Path(folder), count)
        first, second = child(run_file, "first"), child(run_file, "second")
    calls = second["calls"]["cache_hits"]
    assert second["calls"]["cache_misses"] == 0
    result = {
        "benchmark": "replay",
        "ratio": round(first["cpu_seconds"] / second["cpu_seconds"], 2),
        "seconds": round(second["seconds"], 1),
        "cpu_seconds": round(second["cpu_seconds"], 1),
        "per_100k_calls": round(second["seconds"] / calls * 100_000, 1),
        "calls": calls,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
