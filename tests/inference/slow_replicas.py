"""Slow replicas at work, to be interrupted: python -m tests.inference.slow_replicas MODEL. Says when they answer."""

import asyncio
import sys
from pathlib import Path

from cai.cli import interrupts
from cai.data.records import Message
from cai.inference.engine import EngineConfig, Generate, RayConfig
from cai.inference.ray_engine import RayEngine
from tests.inference import ray_engines


async def work(model: Path) -> None:
    def request(text: str, seed: int) -> Generate:
        return Generate([Message(role="user", content=text)], 8, 1.0, seed)

    engine = RayEngine(model, "slow", EngineConfig(ray=RayConfig(replicas=1)), ray_engines.slow)
    try:
        await engine.generate(request("Hi", 0))
        asked = [asyncio.ensure_future(engine.generate(request("later", seed))) for seed in range(200)]
        await asyncio.sleep(0.1)
        print("at work", flush=True)
        await asyncio.gather(*asked)
        await asyncio.sleep(60)
    finally:
        await engine.close()


if __name__ == "__main__":
    with interrupts.handled() as interruption:
        try:
            asyncio.run(work(Path(sys.argv[1])))
        except KeyboardInterrupt:
            interrupts.leave(interruption.status)
