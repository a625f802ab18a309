"""Replicas by Ray: the driver's calls per second, and two replicas against the engine in the process at equal cores.

    python benchmarks/ray_engine.py driver [CALLS] [REPLICAS]
    python benchmarks/ray_engine.py model [PROMPTS] [REPEATS] [AT_ONCE]

`driver` asks scripted engines, which answer at once, 512 requests at a time. `model` lets SmolLM2-135M write 32 tokens
for each prompt, AT_ONCE (64) at a time: in one engine with two threads, and in two replicas with one thread each, by
turns and each in a process of its own; loading is not counted. The fewer at a time, the more it costs that each of two
replicas reads all weights for half of them.

Reading the line of JSON: `calls_per_second` is the driver's, with `driver_cpu_us` of its CPU time per call. `ratio` is
the median of the replicas' seconds ÷ the local engine's, pair by pair (below 1.1: the overhead is within a tenth),
`ratios` are the single pairs; on a machine with other work only the median of several says anything.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cai.data.records import Message
from cai.inference.engine import Engine, EngineConfig, Generate, RayConfig, ScriptedEngine
from cai.inference.models import resolve_model
from cai.inference.ray_engine import RayEngine
from cai.inference.vllm import VllmEngine

TOKENS, CONTEXT = 32, 512
DRIVER_AT_ONCE = 512


def scripted(folder: Path, fingerprint: str, settings: EngineConfig) -> Engine:
    return ScriptedEngine(fingerprint)


def request(number: int, words: int = 0) -> Generate:
    text = f"Question {number}: name an animal and describe it." + " word" * words
    return Generate([Message(role="user", content=text)], TOKENS, 1.0, number)


async def asked(engine: Engine, count: int, at_once: int, words: int = 0) -> tuple[float, float]:
    """Seconds, and seconds of CPU time of this process, for so many requests."""
    await asyncio.gather(*(engine.generate(request(-number - 1)) for number in range(at_once)))  # all replicas are up
    numbers = iter(range(count))

    async def chain() -> None:
        for number in numbers:
            await engine.generate(request(number, words))

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(chain() for _ in range(at_once)))
    return time.perf_counter() - begun, time.process_time() - cpu


async def driver(count: int, replicas: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = EngineConfig(ray=RayConfig(replicas=replicas))
        engine = RayEngine(Path(folder), "benchmark", settings, scripted)
        try:
            await asked(engine, count // 10, DRIVER_AT_ONCE)
            seconds, cpu = await asked(engine, count, DRIVER_AT_ONCE, words=60)
        finally:
            await engine.close()
    return {"calls_per_second": round(count / seconds), "driver_cpu_us": round(1e6 * cpu / count)}


async def model(kind: str, count: int, at_once: int) -> float:
    settings = EngineConfig(max_model_len=CONTEXT, concurrency=at_once)
    folder = resolve_model("smollm2-135m")
    engine: Engine = (
        VllmEngine(folder, "benchmark", settings)
        if kind == "local"
        else RayEngine(folder, "benchmark", settings.model_copy(update={"ray": RayConfig(replicas=2)}))
    )
    try:
        return (await asked(engine, count, at_once))[0]
    finally:
        await engine.close()


def compared(count: int, repeats: int, at_once: int) -> dict[str, object]:
    def measured(kind: str) -> float:
        command = [sys.executable, __file__, kind, str(count), str(at_once)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(json.loads(output.splitlines()[-1])["seconds"])

    ratios = [measured("ray") / measured("local") for _ in range(repeats)]
    return {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}


if __name__ == "__main__":
    what, *numbers = sys.argv[1:] or ["driver"]
    sizes = [int(number) for number in numbers]
    if what == "driver":
        result: dict[str, object] = {**asyncio.run(driver(*[*sizes, *[20_000, 2][len(sizes) :]]))}
    elif what == "model":
        result = compared(*[*sizes, *[64, 3, 64][len(sizes) :]])
    else:
        result = {"seconds": asyncio.run(model(what, *sizes))}
    print(json.dumps(result))
