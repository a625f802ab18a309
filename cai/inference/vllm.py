"""vLLM in this process: requests join the running batch as soon as they come, with no barrier between stages.

One thread builds the engine, steps it and tokenises for it (OpenMP binds its workers to the thread that first
uses them); the asyncio side only queues requests and awaits futures.
"""

import asyncio
import gc
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError, RequestRefused, notice
from cai.data.records import Messages
from cai.inference.chat import THOUGHT, chat_ids, text_ids, turn_end
from cai.inference.chat_template import load_tokenizer
from cai.inference.engine import Choose, Completion, EngineConfig, Generate, UnusableAnswer, split_reasoning
from cai.inference.vllm_settings import (
    explained,
    free_engine,
    keep_freed_memory,
    load_engine,
    named,
    on_cpu,
    return_freed_memory,
    set_environment,
)
from cai.stats.formatting import counted, duration

WORK_SECONDS = 0.5  # a step of this length ran the model, a chunk of a long prompt for example
LOAD_POLL_SECONDS = 1.0
LOAD_NOTICE_SECONDS = 600.0  # between two notices that a model loads; 140 GB from a network disk take half an hour
THOUGHT_TOKENS = 8  # at the end of a prompt, in which an opened thought shows: `<think>` has at most 4, and a newline
ABANDON_SECONDS = 0.5  # that close() waits for a thread it will not join
CLOSE_POLL_SECONDS = 0.01
LOADING = threading.Lock()  # held while a model loads: two at once share vLLM's global state


@dataclass(frozen=True)
class Score:
    """A request for the log-probability of a whole text as what follows the last message."""

    messages: Messages
    text: str


Request = Generate | Choose | Score


@dataclass
class Job:
    """A request, the future that its caller awaits, when it came, and how long its prompt is once it is known."""

    request: Request
    future: "asyncio.Future[Any]"
    since: float
    prompt_tokens: int = 0


class _FairLock:
    """A lock that its waiters get in the order in which they came; threading's own may starve one of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            number = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._serving == number)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


_STEPS = _FairLock()  # two engines that compute on the same cores at once are several times slower than one by one


class SharedStart(Exception):
    """Options that begin with the same token: one token does not distinguish them."""


class VllmEngine:
    """A model folder served by vLLM; see cai.inference.engine.Engine.

    `busy_seconds` is the time spent inside vLLM's step; of `prompt_tokens` read, `cached_tokens` were known from
    prompts that began alike.

    Every request ends: answered, refused (RequestRefused), or with the engine's death or stall, a CaiError for all.
    Raises: CaiError from the first call when vLLM cannot load the folder.
    """

    def __init__(self, folder: Path, fingerprint: str, settings: EngineConfig | None = None) -> None:
        self.fingerprint = fingerprint
        self.busy_seconds = 0.0
        self.prompt_tokens = self.cached_tokens = 0
        self._folder, self._settings = folder, settings or EngineConfig()
        self._stall_seconds = 60 * self._settings.stall_minutes
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pending: dict[int, Job] = {}  # all that await an answer, queued or running
        self._numbers = itertools.count()
        self._progressed: float | None = None  # when the loaded engine last moved; None while it loads
        self._opened = self._noticed = time.monotonic()  # the latter when those who wait last heard that it loads
        self._has_turn = False  # to load: another model is not loading any more
        self._written = 0  # tokens of the running requests, when last counted
        self._error: CaiError | None = None  # why no request can be answered any more
        self._stuck = self._closed = False
        self._options: dict[tuple[str, ...], list[int]] = {}  # their first tokens; a judge has few sets of them
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
        """Stop the thread and free the model's memory.

        A model that still loads, or a stalled one, is not waited for: its thread frees it if it ever gets there.
        """
        if self._closed:
            return
        self._closed = True
        abandoned = self._stuck or (self._progressed is None and self._error is None)
        self._error = self._error or CaiError(f"{self._folder}: the engine is closed")
        self._jobs.put(None)
        end = time.monotonic() + ABANDON_SECONDS if abandoned else math.inf
        while self._thread.is_alive() and time.monotonic() < end:  # as the interpreter exits, no thread can join it
            await asyncio.sleep(CLOSE_POLL_SECONDS)

    async def _submit(self, request: Request) -> Any:
        """The request's answer, waited for as long as the engine moves."""
        if self._error is not None:
            raise self._error
        job = Job(request, asyncio.get_running_loop().create_future(), time.monotonic())
        number = next(self._numbers)
        self._pending[number] = job
        self._jobs.put(job)
        try:
            while True:
                done, _ = await asyncio.wait([job.future], timeout=self._patience(job))
                if done:
                    return job.future.result()
                if self._patience(job) <= 0:
                    self._stuck = True
                    self._error = self._error or self._stalled()
                    raise self._error
                if self._progressed is None:
                    self._notice_loading()
        finally:
            del self._pending[number]
            job.future.cancel()  # without effect on one that is done

    def _patience(self, job: Job) -> float:
        """Seconds until the engine counts as stalled for this request; loading and compiling take what they take."""
        if self._progressed is None:
            return LOAD_POLL_SECONDS
        return max(self._progressed, job.since) + self._stall_seconds - time.monotonic()

    def _notice_loading(self) -> None:
        """Say every LOAD_NOTICE_SECONDS what is waited for: a load that hangs looks like one that is slow."""
        now = time.monotonic()
        if now < self._noticed + LOAD_NOTICE_SECONDS:
            return
        self._noticed, waited = now, now - self._opened
        since = f"{datetime.now() - timedelta(seconds=waited):%H:%M:%S}"
        does = "still loads the model" if self._has_turn else "waits until another model is loaded"
        waiting = counted(len(self._pending), "requests")
        notice(f"{self._folder}: vLLM {does}, for {duration(waited)} since {since}; waiting for it: {waiting}")

    def _stalled(self) -> CaiError:
        now, pending = time.monotonic(), list(self._pending.values())
        longest = max(job.prompt_tokens for job in pending)
        return CaiError(
            f"{self._folder}: vLLM stalled: no token for {duration(self._stall_seconds)}. In flight: "
            f"{counted(len(pending), 'requests')}, the oldest for {duration(now - min(job.since for job in pending))}, "
            f"the longest prompt {counted(longest, 'tokens')}. Run again, with a lower engine.concurrency if it stalls "
            "again; engine.stall_minutes sets how long to wait"
        )

    # Everything below runs in the engine's thread.

    def _serve(self) -> None:
        running: dict[str, Job] = {}
        try:
            with LOADING:
                self._has_turn = True
                if not self._closed:
                    set_environment()
                    keep_freed_memory()
                    self._tokenizer = load_tokenizer(self._folder, self._settings.chat)
                    self._end = turn_end(self._tokenizer)
                    self._llm = load_engine(self._folder, self._settings)
                if self._closed:  # abandoned: gone before another model loads
                    self._unload(running)
                    raise self._error or CaiError(f"{self._folder}: the engine is closed")
            self._limit = self._llm.model_config.max_model_len
            self._progressed = time.monotonic()
            while self._take_jobs(running):
                begun = time.monotonic()
                with _STEPS if on_cpu() else nullcontext():
                    outputs = self._llm.step()
                took = time.monotonic() - begun
                self.busy_seconds += took
                self._settle(running, outputs)
                self._note_progress(took, bool(outputs))
                if running and not self._llm.has_unfinished_requests():
                    raise CaiError(f"{self._folder}: vLLM lost {counted(len(running), 'requests')} without an answer")
        except BaseException as error:  # a dead engine must not leave anyone waiting
            self._fail_all(running, error)
        finally:
            self._unload(running)

    def _settle(self, running: dict[str, Job], outputs: list[Any]) -> None:
        """Answer the requests that are finished; one whose output holds no answer is refused."""
        for output in outputs:
            job = running.pop(output.request_id.split("-")[0], None) if output.finished else None
            if job is None:  # unfinished, or given up meanwhile
                continue
            self.prompt_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens or 0
            try:
                answer = self._answer(job.request, output)
            except RequestRefused as refusal:
                _reject(job.future, refusal)
            except Exception as error:
                _reject(job.future, UnusableAnswer(f"vLLM's output holds no answer: {_named(error)}"))
            else:
                _resolve(job.future, answer)

    def _note_progress(self, seconds: float, finished: bool) -> None:
        """Note that the engine moved, if it did: some request finished or has more tokens, or the step was real work.

        A step that has nothing it can schedule returns at once, and so does not count.
        """
        now = time.monotonic()
        if not finished and seconds < WORK_SECONDS:
            states = self._llm.output_processor.request_states
            written = sum(state.detokenizer.num_output_tokens() for state in states.values() if state.detokenizer)
            if written == self._written:
                return
            self._written = written
        self._progressed = now

    def _take_jobs(self, running: dict[str, Job]) -> bool:
        """Move queued jobs into the batch, waiting for one when it is empty; False once close() was called.

        Those that nobody waits for any more are dropped; what vLLM or the tokenizer cannot take is refused.
        """
        if gone := [name for name, job in running.items() if job.future.cancelled()]:
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
            if job.future.cancelled():
                continue
            name = str(next(self._numbers))
            running[name] = job  # from here on it shares the engine's fate
            try:
                self._add(name, job)
            except (RequestRefused, SharedStart) as error:
                _reject(running.pop(name).future, error)

    def _add(self, name: str, job: Job) -> None:
        """Give vLLM a request. Raises: RequestRefused, SharedStart; anything else is the engine's own fault."""
        try:
            tokens, sampling = self._tokens(job.request), self._sampling(job.request)
        except (RequestRefused, SharedStart):
            raise
        except Exception as error:  # of the tokenizer or the chat template, by this request
            raise RequestRefused(f"the request cannot be tokenised: {_named(error)}") from error
        job.prompt_tokens = len(tokens)
        try:
            self._llm.add_request(name, {"prompt_token_ids": tokens}, sampling)
        except (ValueError, TypeError) as error:  # how vLLM refuses one request
            with suppress(Exception):
                self._llm.abort_request([name])
            raise RequestRefused(f"vLLM refuses the request: {_named(error)}") from error

    def _tokens(self, request: Request) -> list[int]:
        unfinished = request.messages[-1]["role"] == "assistant"
        ids = chat_ids(self._tokenizer, request.messages, not unfinished, unfinished)
        if isinstance(request, Score):
            ids += text_ids(self._tokenizer, request.text)
        if len(ids) >= self._limit:
            reason = f"the request has {len(ids)} tokens, the context holds {self._limit} with the answer"
            raise RequestRefused(reason, retryable=False)
        return ids

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if isinstance(request, Generate):
            return sampling_params(request, self._end)
        if isinstance(request, Choose):
            wanted: dict[str, Any] = {"logprob_token_ids": self._first_tokens(request.options)}
        else:
            wanted = {"prompt_logprobs": 0}  # of the prompt's own tokens
        return SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **wanted
        )

    def _first_tokens(self, options: tuple[str, ...]) -> list[int]:
        if options not in self._options:
            firsts = [text_ids(self._tokenizer, option)[0] for option in options]
            if len(set(firsts)) < len(firsts):
                raise SharedStart
            self._options[options] = firsts
        return self._options[options]

    def _answer(self, request: Request, output: Any) -> Completion | list[float] | float:
        sample = output.outputs[0]
        if sample.finish_reason in ("abort", "error"):
            raise UnusableAnswer(f"vLLM ended the request early: {sample.finish_reason}")
        if isinstance(request, Choose):
            return [sample.logprobs[0][token].logprob for token in self._first_tokens(request.options)]
        if isinstance(request, Score):
            end = len(text_ids(self._tokenizer, request.text))
            scored = zip(output.prompt_token_ids[-end:], output.prompt_logprobs[-end:], strict=True)
            return float(sum(logprobs[token].logprob for token, logprobs in scored))
        opened = self._tokenizer.decode(output.prompt_token_ids[-THOUGHT_TOKENS:]).rstrip().endswith(THOUGHT[0])
        text, reasoning = split_reasoning(sample.text, opened and request.messages[-1]["role"] != "assistant")
        return Completion(
            text=text,
            finish="stop" if sample.finish_reason == "stop" else "length",
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(sample.token_ids),
            reasoning=reasoning,
        )

    def _fail_all(self, running: dict[str, Job], error: BaseException) -> None:
        """Fail every request with one error, those that still come too, until close() is called."""
        if not isinstance(error, CaiError):
            error = CaiError(f"{self._folder}: vLLM stopped: {explained(error)}")
        self._error = self._error or error
        for job in running.values():
            _reject(job.future, error)
        running.clear()
        while (waiting := self._jobs.get()) is not None:
            _reject(waiting.future, error)

    def _unload(self, running: dict[str, Job]) -> None:
        for job in running.values():
            _settle_in_loop(job.future, job.future.cancel)
        llm = self.__dict__.pop("_llm", None)
        if llm is not None:
            free_engine(llm)
            del llm
            gc.collect()
            return_freed_memory()


def sampling_params(request: Generate, end: int | None = None) -> Any:
    """vLLM's sampling parameters for a text; `end`, the chat template's end of a turn, ends it beside the model's own.

    A base model that was given a chat template does not know that one.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        stop_token_ids=[] if end is None else [end],
        output_kind=RequestOutputKind.FINAL_ONLY,
        **(request.sampling.model_dump() if request.sampling else {}),
    )


def _named(error: BaseException) -> str:
    return named(type(error).__name__, str(error))


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
