"""Replicas of the real model in a Ray of their own answer as the engine in this process, and one of them may die."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from cai.data.records import Message
from cai.inference.engine import Choose, EngineConfig, Generate, RayConfig
from cai.inference.ray_engine import RayEngine
from cai.inference.vllm import VllmEngine
from tests.real.conftest import CONTEXT

pytestmark = pytest.mark.real


def test_two_replicas_of_the_real_model_of_which_one_is_killed_answer_as_the_local_engine(
    engine: VllmEngine, real_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A Ray of this test's own, as a command without an address starts it."""
    settings = EngineConfig(max_model_len=CONTEXT, concurrency=8, ray=RayConfig(replicas=2))
    texts = [Generate([Message(role="user", content=f"Name {n} animals.")], 8, float(n % 2), n) for n in range(24)]
    choice = Choose([Message(role="user", content="A or B?"), Message(role="assistant", content="=")], (" A", " B"))

    async def answers(engine: VllmEngine | RayEngine, kill: bool) -> list[Any]:
        asked = [asyncio.ensure_future(engine.generate(text)) for text in texts]
        if kill:
            await asked[0]
            [at_work, *_] = [place for place in engine._places if place.in_flight]
            os.kill(at_work.node.pid, signal.SIGKILL)
        return [*await asyncio.gather(*asked), await engine.choose(choice)]

    async def by_replicas() -> list[Any]:
        replicas = RayEngine(real_model, "real", settings)
        try:
            return await answers(replicas, kill=True)
        finally:
            await replicas.close()

    expected, found = asyncio.run(answers(engine, kill=False)), asyncio.run(by_replicas())
    assert found[:-1] == expected[:-1]
    assert found[-1] == pytest.approx(expected[-1], abs=2e-3)
    out, err = capfd.readouterr()
    assert "requests asked again" in err
    assert out == ""
    assert not [child for child in psutil.Process().children(recursive=True) if "ray" in child.name()]
