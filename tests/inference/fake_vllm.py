"""A stand-in for vLLM's LLMEngine and its tokenizer: what cai asks of them, with faults to order and no weights."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cai.inference import vllm
from cai.inference.engine import Choose, Generate

CONTEXT = 8192  # tokens


class FakeTokenizer:
    """A token a character; a lone surrogate is a TypeError, as of the tokenizers library."""

    chat_template = "each message's text"
    is_fast = False

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.added_tokens_decoder: dict[int, Any] = {}

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool = True, **_: Any) -> Any:
        if self.fault is not None:
            raise self.fault
        if not tokenize:
            return "".join(message["content"] for message in messages)
        return {"input_ids": [token for message in messages for token in self.encode(message["content"])]}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise TypeError("TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]")
        return [ord(character) for character in text.strip(" ") or text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def finished(name: str, prompt: list[int], sampling: Any) -> Any:
    """What LLMEngine.step returns of a finished request: the text `done` with the seed, or even log-probabilities."""
    logprobs = None
    if isinstance(sampling, Choose):
        logprobs = [{ord(option.strip()[0]): SimpleNamespace(logprob=-1.0) for option in sampling.options}]
    text = f" done {sampling.seed or ''}" if isinstance(sampling, Generate) else ""
    sample = SimpleNamespace(text=text, finish_reason="stop", token_ids=[1, 2], logprobs=logprobs)
    return SimpleNamespace(
        request_id=f"{name}-0", finished=True, prompt_token_ids=prompt, num_cached_tokens=0, outputs=[sample]
    )


class FakeLLM:
    """Each request takes `steps` steps. `on_add(prompt)` and `on_step(engine)` may raise, block or sleep."""

    def __init__(
        self,
        steps: int = 2,
        on_add: Callable[[list[int]], None] = lambda prompt: None,
        on_step: Callable[["FakeLLM"], None] = lambda engine: None,
        tokenizer: FakeTokenizer | None = None,
        spoil: Callable[[Any], None] = lambda output: None,
    ) -> None:
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        self.output_processor = SimpleNamespace(request_states={})
        self.running: dict[str, tuple[list[int], Any, int]] = {}
        self.aborted: list[str] = []
        self.freed = False
        self.moves = True  # False: steps return at once and nothing advances
        self._steps, self._on_add, self._on_step, self._spoil = steps, on_add, on_step, spoil
        self._tokenizer = tokenizer or FakeTokenizer()

    def get_tokenizer(self) -> FakeTokenizer:
        return self._tokenizer

    def add_request(self, name: str, prompt: dict[str, list[int]], sampling: Any) -> None:
        self._on_add(prompt["prompt_token_ids"])
        self.running[name] = prompt["prompt_token_ids"], sampling, self._steps

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            self.running.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Any]:
        self._on_step(self)
        if not self.moves:
            time.sleep(0.001)
            return []
        outputs = []
        for name, (prompt, sampling, left) in list(self.running.items()):
            self.running[name] = prompt, sampling, left - 1
            if left == 1:
                del self.running[name]
                outputs.append(finished(name, prompt, sampling))
                self._spoil(outputs[-1])
        self.output_processor.request_states = {
            name: SimpleNamespace(detokenizer=SimpleNamespace(num_output_tokens=lambda n=self._steps - left: n))
            for name, (_, _, left) in self.running.items()
        }
        return outputs


def install(monkeypatch: pytest.MonkeyPatch, load: Callable[[], FakeLLM]) -> None:
    """Let VllmEngine load what `load` returns, with the request itself for vLLM's sampling parameters."""

    def free(llm: FakeLLM) -> None:
        llm.freed = True

    loaded: list[FakeLLM] = []

    def load_tokenizer(*_: Any) -> FakeTokenizer:
        loaded.append(load())
        return loaded[-1].get_tokenizer()

    monkeypatch.setattr(vllm, "load_tokenizer", load_tokenizer)
    monkeypatch.setattr(vllm, "turn_end", lambda _: None)
    monkeypatch.setattr(vllm, "load_engine", lambda *_: loaded.pop())
    monkeypatch.setattr(vllm, "free_engine", free)
    monkeypatch.setattr(vllm, "keep_freed_memory", lambda: None)  # of this process, for good

    def sampling(engine: vllm.VllmEngine, request: Any) -> Any:
        if isinstance(request, Choose):
            engine._first_tokens(request.options)
        return request

    monkeypatch.setattr(vllm.VllmEngine, "_sampling", sampling)
