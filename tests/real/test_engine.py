import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message, Messages
from cai.inference.engine import Choose, Completion, EngineConfig, Generate
from cai.inference.vllm import VllmEngine
from tests.real.conftest import CONTEXT, Trapped

pytestmark = pytest.mark.real


def user(text: str) -> Messages:
    return [Message(role="user", content=text)]


def judging(text: str) -> Messages:
    return [*user(text), Message(role="assistant", content="Answer")]


@asynccontextmanager
async def opened(folder: Path, max_model_len: int = CONTEXT) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(folder, "real", EngineConfig(max_model_len=max_model_len, concurrency=8))
    try:
        yield engine
    finally:
        await engine.close()


def test_the_real_model_answers_repeats_refuses_and_weighs(engine: VllmEngine, real_model: Path) -> None:
    capital = Generate(user("What is the capital of France?"), 24, 0.0, 0)
    sampled = Generate(user("Tell me a short story about a fox."), 24, 1.0, 5)
    too_long = Generate(user("word " * 600), 8, 1.0, 0)
    surrogate = Generate(user("half of a pair: \ud83d"), 8, 1.0, 0)
    options = Choose(judging("Which is an animal? Answer A: dog. Answer B: stone. Reply with A or B."), (" A", " B"))
    alike = Choose(options.messages, (" very likely A", " very likely B", " hardly"))

    async def ask() -> list[object]:
        together = [
            engine.generate(capital),
            engine.generate(sampled),
            engine.generate(Generate(sampled.messages, 24, 1.0, 6)),
            engine.generate(too_long),
            engine.generate(surrogate),
            engine.choose(options),
            engine.choose(alike),
        ]
        first = await asyncio.gather(*together, return_exceptions=True)
        given_up = asyncio.ensure_future(engine.generate(Generate(user("Count to a hundred."), 400, 1.0, 7)))
        await asyncio.sleep(0.5)
        given_up.cancel()
        again = await engine.generate(sampled)
        assert not engine._llm.has_unfinished_requests()  # what nobody waits for is not written to its end
        return [*first, again]

    paris, story, other_story, refusal, untokenised, logprobs, whole, again = asyncio.run(ask())
    assert isinstance(paris, Completion)
    assert "Paris" in paris.text
    assert paris.finish == "stop"
    assert isinstance(story, Completion)
    assert story.finish == "length"
    assert story.completion_tokens == 24
    assert story == again
    assert story != other_story
    assert isinstance(refusal, RequestRefused)
    assert f"the context holds {CONTEXT}" in str(refusal)
    assert not refusal.retryable
    assert isinstance(untokenised, RequestRefused)
    assert isinstance(logprobs, list)
    assert logprobs == pytest.approx(_by_transformers(real_model, options), abs=2e-3)
    assert whole == pytest.approx(_by_transformers(real_model, alike), abs=5e-3)


def _by_transformers(folder: Path, request: Choose) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer.apply_chat_template(request.messages, continue_final_message=True, return_dict=True)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encoded = [tokenizer.encode(option, add_special_tokens=False) for option in request.options]
    alike = len({ids[0] for ids in encoded}) < len(encoded)
    found = []
    for ids in encoded:
        with torch.no_grad():
            logprobs = model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].log_softmax(-1)
        found.append(logprobs[range(len(ids)), ids][: None if alike else 1].sum().item())
    return found


def test_a_folder_vllm_cannot_load_is_an_error_for_everyone_who_waits(tmp_path: Path, real_model: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "nonsense"}')

    async def ask() -> list[object]:
        async with opened(broken) as engine:
            both = (engine.generate(Generate(user("Hi"), 4, 0.0, i)) for i in range(2))
            return await asyncio.gather(*both, return_exceptions=True)

    for error in asyncio.run(ask()):
        assert isinstance(error, CaiError)
        assert "vLLM stopped" in str(error)


def test_a_base_model_without_a_chat_template_is_named_before_it_loads(tmp_path: Path, real_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(real_model, base, ignore=shutil.ignore_patterns("*.safetensors", "chat_template*"))
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

    async def ask() -> None:
        async with opened(base) as engine:
            await engine.generate(Generate(user("Hi"), 4, 0.0, 0))

    with pytest.raises(CaiError, match="base: its tokenizer has no chat template"):
        asyncio.run(ask())


def test_a_context_beyond_the_models_own_is_refused(real_model: Path) -> None:
    async def ask() -> None:
        async with opened(real_model, max_model_len=10**6) as engine:
            await engine.generate(Generate(user("Hi"), 4, 0.0, 0))

    with pytest.raises(CaiError, match=r"engine\.max_model_len: 1000000 tokens, but the model .* takes at most 8192"):
        asyncio.run(ask())


def test_a_folders_python_and_pickles_do_not_run_in_vllm(engine: VllmEngine, trapped: Trapped) -> None:
    assert len(asyncio.run(engine.choose(Choose(judging("Hi"), ("x", "y"))))) == 2
    assert not trapped.marker.exists()
