"""An engine stays open between calls, each of which has an event loop of its own."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate, ScriptedEngine
from cai.inference.loaded_models import KeepAlive
from cai.inference.models import Model, Server

SETTINGS = EngineConfig()
OPTIONS = Choose([Message(role="user", content="?"), Message(role="assistant", content="=")], (" A", " B"))


def hello(seed: int = 0) -> Generate:
    return Generate([Message(role="user", content="Hi")], 8, 0.0, seed)


class Engines:
    """Opens engines that write down what happens to them, and that answer as `answer` does."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.answer: Callable[[Generate], str] = lambda request: "yes"
        self.kept = KeepAlive()

    def open(self, model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        engines, number = self, sum(event.startswith("open") for event in self.events) + 1
        self.events.append(f"open {number}")

        class Noting(ScriptedEngine):
            async def generate(self, request: Generate) -> Completion:
                self._answer = lambda request: f"{number}: {engines.answer(request)}"
                return await super().generate(request)

            async def close(self) -> None:
                await asyncio.sleep(0)
                engines.events.append(f"close {number}")

        return Noting(fingerprint)

    def call(
        self, *requests: Generate | Choose, fingerprint: str = "m", settings: EngineConfig = SETTINGS,
        model: Model = Path("m"),
    ) -> list[Any]:  # fmt: skip
        """What a call asks, all at once; the texts of its answers, or its errors."""

        async def asked() -> list[Any]:
            engine = self.kept.opening(self.open)(model, fingerprint, settings)
            try:
                answers: list[Awaitable[Any]] = [
                    engine.choose(r) if isinstance(r, Choose) else engine.generate(r) for r in requests
                ]
                return await asyncio.gather(*answers, return_exceptions=True)
            finally:
                await engine.close()

        return [answer.text if isinstance(answer, Completion) else answer for answer in asyncio.run(asked())]


def test_calls_with_the_same_model_and_settings_load_once() -> None:
    engines = Engines()
    assert engines.call() == [] and engines.events == []
    for _ in range(3):
        assert engines.call(hello(), hello(1)) == ["1: yes", "1: yes"]
        assert len(engines.call(OPTIONS)[0]) == 2
    assert engines.events == ["open 1"]
    asyncio.run(engines.kept.close())
    asyncio.run(engines.kept.close())
    assert engines.events == ["open 1", "close 1"]
    assert engines.call(hello()) == ["2: yes"]


@pytest.mark.parametrize(
    "changes", [{"fingerprint": "other"}, {"settings": EngineConfig(concurrency=2)}], ids=["model", "settings"]
)
def test_another_model_is_loaded_once_the_first_is_closed(changes: dict[str, Any]) -> None:
    engines = Engines()
    engines.call(hello())
    engines.call(hello(), hello(1), **changes)
    assert engines.events == ["open 1", "close 1", "open 2"]


def test_servers_are_not_kept() -> None:
    engines = Engines()
    engines.call(hello())
    engines.call(hello(), model=Server("http://localhost/v1", "m"))
    engines.call(hello())
    assert engines.events == ["open 1", "open 2", "close 2"]


def test_an_interrupted_call_leaves_its_engine_to_the_next() -> None:
    engines = Engines()

    async def interrupted() -> None:
        engine = engines.kept.opening(engines.open)(Path("m"), "m", SETTINGS)
        try:
            await asyncio.gather(engine.generate(hello()), asyncio.sleep(60))
        finally:
            await engine.close()

    async def cancel() -> None:
        task = asyncio.ensure_future(interrupted())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert engines.call(hello()) == ["1: yes"]
    assert engines.events == ["open 1"]


def test_an_engine_that_fails_is_not_kept() -> None:
    engines = Engines()
    engines.call(hello())

    def stop(request: Generate) -> str:
        if request.seed:
            raise CaiError("vLLM stopped")
        return "yes"

    engines.answer = stop
    first, second = engines.call(hello(), hello(1))
    assert first == "1: yes" and isinstance(second, CaiError)
    assert engines.events == ["open 1", "close 1"]
    assert engines.call(hello()) == ["2: yes"]


def test_a_refused_request_is_no_failure_of_the_engine() -> None:
    engines = Engines()

    def refuse(request: Generate) -> str:
        raise RequestRefused("too long")

    engines.answer = refuse
    assert isinstance(engines.call(hello())[0], RequestRefused)
    assert isinstance(engines.call(hello())[0], RequestRefused)
    assert engines.events == ["open 1"]


def test_an_engine_that_died_idle_is_replaced_for_all_requests() -> None:
    engines = Engines()
    engines.call(hello())

    def stop(request: Generate) -> str:
        if engines.events == ["open 1"]:
            raise CaiError("vLLM stopped")
        return "yes"

    engines.answer = stop
    assert engines.call(*map(hello, range(5))) == ["2: yes"] * 5
    assert engines.events == ["open 1", "close 1", "open 2"]


def test_one_that_fails_again_is_an_error_and_not_opened_for_ever() -> None:
    engines = Engines()
    engines.call(hello())

    def stop(request: Generate) -> str:
        raise CaiError("out of memory")

    engines.answer = stop
    assert [str(error) for error in engines.call(hello(), hello(1))] == ["out of memory"] * 2
    assert engines.events == ["open 1", "close 1", "open 2", "close 2"]


def test_calls_at_the_same_time_have_an_engine_each_and_one_is_kept() -> None:
    engines, together = Engines(), threading.Barrier(2)

    def meet(request: Generate) -> str:
        together.wait(10)
        return "yes"

    engines.answer = meet
    threads = [threading.Thread(target=engines.call, args=(hello(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event[:-2] for event in engines.events) == ["close", "open", "open"]


def test_work_of_a_kept_engine_is_not_taken_for_loading(tmp_path: Path) -> None:
    engines = Engines()

    async def work(cache: Cache, seed: int) -> None:
        opening = engines.kept.opening(engines.open)
        engine = CachedEngine("m", cache, lambda: opening(Path("m"), "m", SETTINGS))
        try:
            with engine.stage("answers"):
                await engine.generate(hello(seed))
        finally:
            await engine.close()

    with closing(Cache(tmp_path / "cache.sqlite")) as cache:
        for seed in range(2):
            asyncio.run(work(cache, seed))
        assert [done.loaded for done in cache.work("m")] == [True, False]


def test_the_engine_is_closed_when_the_process_ends() -> None:
    code = (
        "from tests.inference.test_keep_alive import *\n"
        "class Printed(list):\n"
        "    def append(self, event): super().append(event); print(event)\n"
        "engines = Engines()\n"
        "engines.events = Printed()\n"
        "engines.call(hello())\n"
        "print('end')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout.splitlines(), run.stderr) == (["open 1", "end", "close 1"], "")
