import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cai.engines.base import Choose, Completion, Generate
from cai.engines.vllm import VllmEngine
from cai.errors import CaiError, RequestRefused
from cai.records import Message, Messages

pytestmark = pytest.mark.real


def user(text: str) -> Messages:
    return [Message(role="user", content=text)]


def judging(text: str) -> Messages:
    return [*user(text), Message(role="assistant", content="Answer")]


@asynccontextmanager
async def opened(folder: Path, context: int = 512) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(folder, "real", context, most_at_once=8)
    try:
        yield engine
    finally:
        await engine.close()


def test_the_real_model_answers_repeats_refuses_and_weighs(real_model: Path) -> None:
    """One engine for all of it: starting vLLM takes longer than the rest."""
    capital = Generate(user("What is the capital of France?"), 24, 0.0, 0)
    sampled = Generate(user("Tell me a short story about a fox."), 24, 1.0, 5)
    too_long = Generate(user("word " * 600), 8, 1.0, 0)
    options = Choose(judging("Which is an animal? Answer A: dog. Answer B: stone. Reply with A or B."), (" A", " B"))
    clash = Choose(options.messages, (" A", " A"))

    async def ask() -> list[object]:
        async with opened(real_model) as engine:
            together = [
                engine.generate(capital),
                engine.generate(sampled),
                engine.generate(Generate(sampled.messages, 24, 1.0, 6)),
                engine.generate(too_long),
                engine.choose(options),
                engine.choose(clash),
            ]
            first = await asyncio.gather(*together, return_exceptions=True)
            return [*first, await engine.generate(sampled)]

    paris, story, other_story, refusal, logprobs, fault, again = asyncio.run(ask())
    assert isinstance(paris, Completion)
    assert "Paris" in paris.text
    assert paris.finish == "stop"
    assert isinstance(story, Completion)
    assert story.finish == "length"
    assert story.completion_tokens == 24
    assert story == again
    assert story != other_story
    assert isinstance(refusal, RequestRefused)
    assert "the context holds 512" in str(refusal)
    assert isinstance(fault, CaiError)
    assert isinstance(logprobs, list)
    assert logprobs == pytest.approx(_by_transformers(real_model, options), abs=2e-3)


def _by_transformers(folder: Path, request: Choose) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        request.messages, continue_final_message=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(**ids).logits[0, -1]
    logprobs = torch.log_softmax(logits, -1)
    return [logprobs[tokenizer.encode(option, add_special_tokens=False)[0]].item() for option in request.options]


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


def test_a_context_beyond_the_models_own_is_refused(real_model: Path) -> None:
    async def ask() -> None:
        async with opened(real_model, context=10**6) as engine:
            await engine.generate(Generate(user("Hi"), 4, 0.0, 0))

    with pytest.raises(CaiError, match=r"engine\.context: 1000000 tokens asked for, the model .* holds 8192"):
        asyncio.run(ask())
