import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.inference.cache import Cache, CachedEngine
from cai.inference.engine import Choose, Completion, Engine, Generate, ScriptedEngine


def generate(seed: int = 0, text: str = "hello", max_tokens: int = 9) -> Generate:
    return Generate([Message(role="user", content=text)], max_tokens, 1.0, seed)


def choose(text: str = "hello") -> Choose:
    return Choose([Message(role="user", content=text), Message(role="assistant", content="Answer")], (" A", " B"))


def remembering(path: Path, model: Engine, fingerprint: str = "m") -> CachedEngine:
    return CachedEngine(fingerprint, Cache(path), lambda: model)


def test_an_answer_is_paid_for_once_across_processes_and_engines(tmp_path: Path) -> None:
    model = ScriptedEngine()

    async def ask() -> tuple[Completion, list[float], CachedEngine]:
        engine = remembering(tmp_path / "cache.sqlite", model)
        return await engine.generate(generate()), await engine.choose(choose()), engine

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first[:2] == second[:2]
    assert len(model.requests) == 2
    assert (second[2].tally.cache_misses, second[2].tally.cache_hits) == (0, 2)


@pytest.mark.parametrize("other", [generate(seed=1), generate(text="hello "), generate(max_tokens=8)])
def test_any_change_of_the_request_is_another_call(tmp_path: Path, other: Generate) -> None:
    model = ScriptedEngine()

    async def ask() -> None:
        engine = remembering(tmp_path / "cache.sqlite", model)
        await engine.generate(generate())
        await engine.generate(other)
        await remembering(tmp_path / "cache.sqlite", model, fingerprint="another model").generate(generate())

    asyncio.run(ask())
    assert len(model.requests) == 3


def test_equal_requests_at_the_same_time_are_asked_once(tmp_path: Path) -> None:
    model = ScriptedEngine(delay=0.01)

    async def ask() -> list[Completion]:
        engine = remembering(tmp_path / "cache.sqlite", model)
        return await asyncio.gather(*(engine.generate(generate()) for _ in range(5)))

    assert len(set(asyncio.run(ask()))) == 1
    assert len(model.requests) == 1


def test_the_model_is_not_opened_while_the_memo_knows_every_answer(tmp_path: Path) -> None:
    async def ask(open_engine: Callable[[], Engine]) -> Completion:
        return await CachedEngine("m", Cache(tmp_path / "cache.sqlite"), open_engine).generate(generate())

    def never() -> Engine:
        raise AssertionError("opened")

    assert asyncio.run(ask(ScriptedEngine)) == asyncio.run(ask(never))


def test_a_refusal_reaches_everyone_who_waits_and_is_not_remembered(tmp_path: Path) -> None:
    class Refusing(ScriptedEngine):
        async def generate(self, request: Generate) -> Completion:
            await asyncio.sleep(0.01)
            self.requests.append(request)
            raise RequestRefused("too long")

    model = Refusing()

    async def ask() -> list[object]:
        engine = remembering(tmp_path / "cache.sqlite", model)
        both = await asyncio.gather(*(engine.generate(generate()) for _ in range(2)), return_exceptions=True)
        again = await asyncio.gather(engine.generate(generate()), return_exceptions=True)
        return [*both, *again]

    assert [str(error) for error in asyncio.run(ask())] == ["too long"] * 3
    assert len(model.requests) == 2


def test_a_file_that_is_no_memo_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_text("not a database at all, just text " * 10)
    with pytest.raises(CaiError, match=r"cache\.sqlite: not a usable cache"):
        Cache(path)
