"""A process that asks a slow engine over a shared cache: python -m tests.faults.asking CACHE QUESTIONS DELAY.

Prints, as JSON, the calls it paid for and the answers, which say which process gave them.
"""

import asyncio
import json
import os
import sys
from contextlib import closing
from pathlib import Path

from cai.data.records import Message
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Generate, ScriptedEngine


def request(number: int) -> Generate:
    return Generate([Message(role="user", content=f"Question {number}?")], 9, 1.0, number)


async def answers(engine: CachedEngine, questions: int) -> list[str]:
    completions = await asyncio.gather(*(engine.generate(request(number)) for number in range(questions)))
    return [completion.text for completion in completions]


if __name__ == "__main__":
    path, questions, delay = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    model = ScriptedEngine(answer=lambda _: f"of process {os.getpid()}", delay=delay)
    with closing(Cache(path)) as cache:
        engine = CachedEngine("m", cache, lambda: model)
        texts = asyncio.run(answers(engine, questions))
    print(json.dumps({"paid": engine.tally.cache_misses, "answers": texts}))
