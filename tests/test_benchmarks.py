"""The benchmarks follow the code that they measure. Their parts with a real model run by hand (docs/benchmarks.md)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
def test_a_run_is_measured_and_replayed_over_an_engine_that_answers_at_once() -> None:
    for script, arguments in (("scheduler.py", ["20", "40"]), ("replay.py", ["20"])):
        command = [sys.executable, str(BENCHMARKS / script), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout.splitlines()[-1])["ratio"] > 0


@pytest.mark.slow
def test_the_judge_benchmark_labels_scripted_pairs() -> None:
    command = [sys.executable, str(BENCHMARKS / "judge.py"), "scale", "20"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]).keys() == {"ms", "mb"}


@pytest.mark.slow
def test_the_benchmark_of_claims_simulates_comparisons() -> None:
    command = [sys.executable, str(BENCHMARKS / "claims.py"), "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["false_stars"].keys() == {"one_training", "three_trainings", "attribute", "over_prompts"}
    assert {row["n"] for row in measured["coverage"]} == {8, 16, 64}


def test_the_tables_of_training_at_scale_are_those_that_their_script_computes() -> None:
    command = [sys.executable, str(BENCHMARKS / "training_scale.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = (BENCHMARKS.parent / "docs/training-scale.md").read_text(encoding="utf-8")
    for table in result.stdout.strip().split("\n\n"):
        assert table in page, "run `python benchmarks/training_scale.py write`"
