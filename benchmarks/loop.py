"""Our streaming critique–revise loop against a bare vLLM script with a barrier between its stages.

    python benchmarks/loop.py [PROMPTS] [REPEATS]

Both answer, criticise and revise the same prompts with the same templates, principles, seeds, vLLM settings and
token limits; a quarter of the calls may take 512 tokens, the others 16, 48 or 128, decided by the call's seed. The
bare script sends all drafts, waits, sends all critiques, waits, sends all revisions. Each measurement is a process of
its own, ours and bare by turns; loading is not counted.

Reading the line of JSON: `ratio` is the median of ours ÷ bare in generated tokens per second, pair by pair (above 1:
the loop without a barrier is faster); `engine_share` is the median share of our wall time that was spent inside vLLM's
step, the rest being everything `cai` does; `ratios` are the single pairs.
"""

import asyncio
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cai.config.hashing import derive_seed
from cai.constitution.principles import assign, load_constitution
from cai.constitution.templates import Templates
from cai.data.prompts import read_prompts
from cai.data.records import Message, Prompt
from cai.feedback.revise import ReviseConfig, Reviser, respond
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Completion, EngineConfig, Generate
from cai.inference.models import resolve_model
from cai.inference.scheduler import run_concurrently
from cai.inference.vllm import VllmEngine
from cai.inference.vllm_settings import engine_arguments

ROOT = Path(__file__).parent.parent
LIMITS = (16, 48, 128, 512)
AT_ONCE, CONTEXT, TEMPERATURE = 32, 4096, 0.7
ENGINE = EngineConfig(max_model_len=CONTEXT, concurrency=AT_ONCE)


class LimitedEngine(CachedEngine):
    """Our engine, with each call's token limit decided by its seed."""

    async def generate(self, request: Generate) -> Completion:
        return await super().generate(dataclasses.replace(request, max_tokens=limit(request.seed)))


def limit(seed: int) -> int:
    return LIMITS[seed % len(LIMITS)]


def inputs(count: int) -> tuple[list[Prompt], Any, Templates]:
    prompts = read_prompts(ROOT / "examples/prompts.jsonl", count)[0]
    return prompts, load_constitution(ROOT / "constitutions/harmless.yaml"), Templates(ROOT / "prompts/default")


async def ours(count: int) -> dict[str, float]:
    prompts, principles, templates = inputs(count)
    settings = ReviseConfig(rounds=1, temperature=TEMPERATURE)
    with tempfile.TemporaryDirectory() as folder:
        model = VllmEngine(resolve_model("smollm2-135m"), "benchmark", ENGINE)
        await model.generate(Generate([Message(role="user", content="Hello")], 4, 0.0, 0))  # load and warm up
        engine = LimitedEngine("benchmark", Cache(Path(folder) / "cache.sqlite"), lambda: model)

        async def one(prompt: Prompt) -> None:
            draft = await respond(prompt, engine, ReviseConfig(max_tokens=1, temperature=TEMPERATURE), seed=0)
            await Reviser(templates, engine, settings, seed=0).rounds(prompt, draft, principles)

        busy, start = model.busy_seconds, time.perf_counter()
        async for _ in run_concurrently(one, prompts, AT_ONCE):
            pass
        seconds = time.perf_counter() - start
        share = (model.busy_seconds - busy) / seconds
        await model.close()
    return {"tokens": engine.tally.tokens, "seconds": seconds, "engine_share": share}


def bare(count: int) -> dict[str, float]:
    prompts, principles, templates = inputs(count)
    settings = engine_arguments(resolve_model("smollm2-135m"), ENGINE)
    from vllm import LLM, SamplingParams

    llm = LLM(**settings)
    llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=4), use_tqdm=False)
    conversations = [list(prompt.messages) for prompt in prompts]
    tokens = 0
    start = time.perf_counter()
    for step, number in (("respond", 0), ("critique", 1), ("revise", 1)):
        sampling = []
        for prompt, conversation in zip(prompts, conversations, strict=True):
            principle, request = assign(principles, 0, prompt.id, "round 1")[0], prompt.messages[-1]["content"]
            if step == "critique":
                conversation.append(Message(role="user", content=templates.critique(principle, 1, request)))
            if step == "revise":
                critique = conversation[-1]["content"]
                conversation.append(Message(role="user", content=templates.revise(principle, 1, request, critique)))
            seed = derive_seed(0, prompt.id, step, number)
            sampling.append(SamplingParams(max_tokens=limit(seed), temperature=TEMPERATURE, seed=seed))
        for conversation, output in zip(conversations, llm.chat(conversations, sampling, use_tqdm=False), strict=True):
            tokens += len(output.outputs[0].token_ids)
            conversation.append(Message(role="assistant", content=output.outputs[0].text.strip()))
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def measure(how: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, str(count), "1", how]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    if len(sys.argv) > 3:
        print(json.dumps(asyncio.run(ours(count)) if sys.argv[3] == "ours" else bare(count)))
        return
    pairs = [(measure("ours", count), measure("bare", count)) for _ in range(repeats)]
    rates = [tuple(run["tokens"] / run["seconds"] for run in pair) for pair in pairs]
    ratios = [round(a / b, 3) for a, b in rates]
    print(
        json.dumps(
            {
                "benchmark": "loop",
                "ratio": statistics.median(ratios),
                "engine_share": round(statistics.median(pair[0]["engine_share"] for pair in pairs), 4),
                "ratios": ratios,
                "tokens_per_second": {
                    "ours": round(statistics.median(rate[0] for rate in rates), 1),
                    "bare": round(statistics.median(rate[1] for rate in rates), 1),
                },
                "prompts": count,
            }
        )
    )


if __name__ == "__main__":
    main()
