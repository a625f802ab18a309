"""Errors of vLLM say which setting to change, and what its own processes wrote is found in their log."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cai.inference import vllm_settings
from cai.inference.vllm_settings import LOG_VARIABLE, explained
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            "To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is needed, which "
            "is larger than the available KV cache memory (2.31 GiB). Based on the available memory, the estimated "
            "maximum model length is 18912. Try increasing `gpu_memory_utilization`",
            "set engine.max_model_len to at most 18912",
        ),
        (
            "Free memory on device cuda:0 (30.52/79.19 GiB) on startup is less than desired GPU memory utilization "
            "(0.92, 72.85 GiB). Decrease GPU memory utilization",
            "30.52 of 79.19 GiB are free: set engine.vllm.gpu_memory_utilization to at most 0.38",
        ),
        ("No available memory for the cache blocks. Try", "the weights fill the engine's share of memory"),
        (
            "World size (8) is larger than the number of available GPUs (2) in this node. If this is intentional",
            "ask for 8 GPUs, and this machine has 2",
        ),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "engine.vllm.max_num_seqs"),
    ],
)
def test_an_error_of_memory_or_devices_names_the_setting_and_its_bound(
    message: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    assert advice in explained(ValueError(message))
    assert explained(ValueError("something else")) == "ValueError: something else"


def test_why_an_engines_process_ended_is_read_from_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "vllm-1.json"))
    monkeypatch.setattr(vllm_settings, "_failed", set())
    (tmp_path / "vllm-1.log").write_text(
        "2026-11-30 INFO EngineCore loading\n"
        "2026-11-30 ERROR EngineCore EngineCore failed to start.\n"
        "Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in f\n'
        f"ValueError: {'Long before. ' * 30}Free memory on device cuda:0 (10.00/80.00 GiB) on startup is less than "
        "desired GPU memory utilization (0.9, 72.0 GiB).\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n",
        encoding="utf-8",
    )
    said = explained(RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}"))
    assert said.startswith("ValueError: Long before.")
    assert "gpu_memory_utilization to at most 0.12" in said
    assert said.endswith(f"vLLM's log is {tmp_path / 'vllm-1.log'}")


CUDA_FIRST = """
import sys
from cai.inference.vllm_settings import LOG_VARIABLE as LOG
import torch
asked = []
def seen(*_):
    import os
    asked.append(os.environ.get("VLLM_WORKER_MULTIPROC_METHOD"))
    return False
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.current_device = torch._C._cuda_init = seen
from pathlib import Path
from cai.inference import vllm_settings
vllm_settings.vllm_build = lambda: "vllm"
from cai.inference.engine import EngineConfig
vllm_settings.engine_arguments(Path(sys.argv[1]), EngineConfig(vllm={"dtype": "bfloat16"}))
vllm_settings.check_arguments(EngineConfig(vllm={"dtype": "bfloat16"}))
import json, os
print(json.dumps({"asked": asked, "method": os.environ["VLLM_WORKER_MULTIPROC_METHOD"], "log": os.environ[LOG]}))
"""


@pytest.mark.slow
def test_workers_are_spawned_before_any_device_is_asked(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CUDA_FIRST, tiny_model],
        capture_output=True, text=True, cwd=ROOT, check=False, env={"CAI_CACHE": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["method"] == "spawn"
    assert set(found["asked"]) <= {"spawn"}  # whoever asks does so after it was set
    assert not list((tmp_path / "logs").iterdir())  # an engine that came up leaves no log behind
