"""What a stage's worker imports: PPO does without trl, whose import takes seconds."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_ppo_is_imported_without_trl() -> None:
    code = "import sys, cai.training.ppo.trainer; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
