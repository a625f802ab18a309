"""The benchmarks follow the code that they measure. Their parts with a real model run by hand (docs/benchmarks.md)."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_judge_benchmark_labels_scripted_pairs() -> None:
    command = [sys.executable, str(BENCHMARKS / "judge.py"), "scale", "20"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]).keys() == {"ms", "mb"}
