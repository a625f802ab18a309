"""What an edit of a constitution costs: rewording one principle of sixteen, or adding a seventeenth, after a run.

    python benchmarks/edit.py [PROMPTS] [REAL] [SCALE]

A run of PROMPTS (128) prompts and two rounds of critique and revision by the sixteen principles of
`constitutions/harmless.yaml` is made once, then again with one principle reworded, then with one more principle; the
same on the real model with REAL (32) prompts, and on the scripted engine with SCALE (100,000). With 0 a part is left
out.

Reading the line of JSON: `edit_share` and `added_share` are calls of the loop (answers, critiques, revisions) asked
anew ÷ those of the first run, each the mean over all sixteen principles to reword, and over sixteen ids to add; of the
real model it is the median edit, of the large run one edit. `stream_edit_share` and `stream_added_share` are the same
where principles are drawn from a seeded stream, one prompt after the other, in place of hashing: rewording leaves such
draws alone, and adding moves nearly all. `edit_wall_share` is the time of the run after the edit ÷ that of the first,
with the loading of the model in both; `ms_per_call` and `mb` are processor time of a call of the first large run and
the peak of memory.
"""

import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cai.feedback.revise
from cai.config.hashing import fingerprint
from cai.constitution.principles import Constitution, Principle, assign, load_constitution
from cai.constitution.templates import Templates
from cai.data.prompts import read_prompts
from cai.data.records import Message, Prompt
from cai.feedback.revise import ReviseConfig, Reviser
from cai.inference.cache import Cache, Tally
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Completion, Engine, EngineConfig, Generate, ScriptedEngine
from cai.inference.models import resolve_model
from cai.inference.scheduler import run_concurrently
from cai.inference.vllm import VllmEngine

ROOT = Path(__file__).parent.parent
SETTINGS = ReviseConfig(rounds=2, max_tokens=64, temperature=1.0)
AT_ONCE, CONTEXT = 32, 2048
ENGINE = EngineConfig(max_model_len=CONTEXT, concurrency=AT_ONCE)


def sensitive(request: Generate) -> str:
    """An answer that is another one when anything of the request is."""
    return fingerprint(request.messages, request.seed)


class Forgetful(ScriptedEngine):
    """A scripted engine that does not keep what it was asked."""

    async def generate(self, request: Generate) -> Completion:
        self.requests.clear()
        return await super().generate(request)


def scripted() -> Engine:
    return Forgetful(answer=sensitive)


def prompts(count: int) -> list[Prompt]:
    """The shipped prompts, and as many numbered ones as it takes."""
    shipped = read_prompts(ROOT / "examples/prompts.jsonl", min(count, 200))[0]
    numbered = (Message(role="user", content=f"What is special about the number {i}?") for i in range(count))
    return shipped + [Prompt(id=f"n{i}", messages=[m]) for i, m in enumerate(numbered) if i >= len(shipped)]


def reworded(c: Constitution, number: int) -> Constitution:
    changed = c.principles[number].model_copy(update={"critique": c.principles[number].critique + " Be exact."})
    return c.model_copy(update={"principles": [*c.principles[:number], changed, *c.principles[number + 1 :]]})


def added(c: Constitution, number: int) -> Constitution:
    more = c.principles[number].model_copy(update={"id": f"another-{number}"})
    return c.model_copy(update={"principles": [*c.principles, more]})


def stream(c: Constitution, given: list[Prompt]) -> Callable[..., list[Principle]]:
    """An assignment that draws from one seeded stream, in the order of prompts and rounds."""
    draws = random.Random(0)
    drawn = {(p.id, f"round {r + 1}"): draws.choice(c.principles) for p in given for r in range(SETTINGS.rounds)}
    return lambda _, __, prompt_id, occasion: [drawn[prompt_id, occasion]]


async def loop(c: Constitution, given: list[Prompt], cache: Cache, open_model: Callable[[], Engine]) -> Tally:
    """The critique–revise loop over all prompts; the calls it took. The model is opened when it is first needed."""
    engine, templates = CachedEngine("benchmark", cache, open_model), Templates(ROOT / "prompts/default")

    async def one(prompt: Prompt) -> None:
        reviser = Reviser(templates, engine, SETTINGS, seed=0)
        await reviser.rounds(prompt, await reviser.respond(prompt), c)

    async for _ in run_concurrently(one, given, AT_ONCE):
        pass
    await engine.close()
    return engine.tally


def share(before: Constitution, after: Constitution, given: list[Prompt], by_stream: bool) -> float:
    """Calls asked anew after an edit ÷ calls of the first run, on the scripted engine."""
    with tempfile.TemporaryDirectory() as folder:
        cache, asked = Cache(Path(folder) / "cache.sqlite"), []
        for c in (before, after):
            cai.feedback.revise.assign = stream(c, given) if by_stream else assign
            asked.append(asyncio.run(loop(c, given, cache, scripted)).cache_misses)
        cai.feedback.revise.assign = assign
        cache.close()
    return asked[1] / asked[0]


def shares(count: int) -> dict[str, float]:
    c, given = harmless(), prompts(count)

    def mean(edit: Callable[[Constitution, int], Constitution], by_stream: bool, times: int) -> float:
        return round(statistics.fmean(share(c, edit(c, i), given, by_stream) for i in range(times)), 4)

    return {
        "edit_share": mean(reworded, False, len(c.principles)),
        "added_share": mean(added, False, len(c.principles)),
        "stream_edit_share": mean(reworded, True, len(c.principles)),
        "stream_added_share": mean(added, True, 1),
    }


def harmless() -> Constitution:
    return load_constitution(ROOT / "constitutions/harmless.yaml")


def median(edit: Callable[[Constitution, int], Constitution], given: list[Prompt]) -> Constitution:
    """The edit that asks as many calls anew as half of the sixteen do at most."""
    edits = [edit(harmless(), i) for i in range(len(harmless().principles))]
    return sorted(edits, key=lambda c: share(harmless(), c, given, False))[len(edits) // 2]


def small() -> Engine:
    return VllmEngine(resolve_model("smollm2-135m"), "benchmark", ENGINE)


def real(count: int) -> dict[str, float]:
    """A run, and again after one principle was reworded, with the real model: shares of calls and of wall time."""
    given, asked, seconds = prompts(count), [], []
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder) / "cache.sqlite")
        for c in (harmless(), median(reworded, given), median(added, given)):
            start = time.monotonic()
            asked.append(asyncio.run(loop(c, given, cache, small)).cache_misses)
            seconds.append(time.monotonic() - start)
            print(f"{asked[-1]} calls asked in {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    return {
        "prompts": count,
        "edit_share": round(asked[1] / asked[0], 4),
        "added_share": round(asked[2] / asked[0], 4),
        "edit_wall_share": round(seconds[1] / seconds[0], 3),
        "added_wall_share": round(seconds[2] / seconds[0], 3),
        "seconds": round(seconds[0], 1),
    }


def scale(count: int) -> dict[str, float]:
    """The same with as many prompts on the scripted engine, with the time and memory `cai` itself takes."""
    given, asked, seconds = prompts(count), [], []
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder) / "cache.sqlite")
        for c in (harmless(), reworded(harmless(), 0), added(harmless(), 0)):
            start = time.process_time()
            asked.append(asyncio.run(loop(c, given, cache, scripted)).cache_misses)
            seconds.append(time.process_time() - start)
    return {
        "prompts": count,
        "edit_share": round(asked[1] / asked[0], 4),
        "added_share": round(asked[2] / asked[0], 4),
        "edit_time_share": round(seconds[1] / seconds[0], 3),
        "ms_per_call": round(1000 * seconds[0] / asked[0], 3),
        "mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }


def child(part: str, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, part, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{part}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parts = {"shares": shares, "real": real, "scale": scale}
    if len(sys.argv) > 1 and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](int(sys.argv[2]))))
        return
    counts = [int(sys.argv[i]) if len(sys.argv) > i else usual for i, usual in ((1, 128), (2, 32), (3, 100_000))]
    result = {"benchmark": "edit", **child("shares", counts[0])}
    result |= {part: child(part, count) for part, count in zip(("real", "scale"), counts[1:], strict=True) if count}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
