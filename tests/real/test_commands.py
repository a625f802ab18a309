"""The main job and the notebook, as a user runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_notebook import check, execute

pytestmark = pytest.mark.real


def test_the_main_job_on_the_real_model(real_model: Path, tmp_path: Path) -> None:
    """The whole path in small: revise, judge, train, evaluate in real vLLM, then again from the cache."""
    settings = {
        "prompts.limit": 4, "prompts.holdout": 0.25, "revise.keep_truncated": "true", "revise.max_tokens": 16,
        "evaluate.max_tokens": 16, "train.0.num_train_epochs": 1,
    }  # fmt: skip
    command = [
        *(sys.executable, "-m", "cai.cli.main", "run", str(ROOT / "examples/quickstart.yaml")),
        *("--runs", str(tmp_path / "runs"), *(f"--set={name}={value}" for name, value in settings.items())),
    ]
    first, second = (subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "win rate" in first.stdout
    assert second.returncode == 0, second.stderr
    assert re.search(r"total +(\d+) +\1 +0 +0", second.stdout)  # all calls are cache hits
    assert "already trained" in second.stdout


def test_the_notebook_runs_on_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_model: Path) -> None:
    check(execute(tmp_path, monkeypatch, "smollm2-135m"))
