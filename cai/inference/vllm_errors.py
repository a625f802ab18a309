"""What an error of vLLM's means for the settings of a run, also one of its engine's own processes.

On GPUs the engine runs in processes of its own, and says in its log alone why they ended. So its log goes to a file,
which is read when the engine does not come up.
"""

import atexit
import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cai.config.locate import cache_folder

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
