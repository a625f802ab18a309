"""What the judge costs, and what it is worth: an ensemble of principles, a written verdict, both orders, 100,000 pairs.

    python benchmarks/judge.py HHH PAIRS [COUNT] [REPEATS]

HHH and PAIRS are files that `cai judge-eval` reads, such as Anthropic's HHH questions and hh-rlhf pairs. For the costs,
the first COUNT (8) pairs of PAIRS of at most 400 tokens are judged by one principle, by sixteen, by sixteen with a
template that names the principle before the conversation, and by one in 96 written tokens, always in both orders; each
measurement is a process of its own, by turns, and loading is not counted.

Reading the line of JSON: `ensemble_cost` is the median time of sixteen principles ÷ that of one, `principle_first_cost`
the same with the other template; `cached` are shares of prompt tokens that need not be read again. `against_written`
is verdicts a second of the sixteen ÷ written verdicts a second. For each file `one_order` and `both_orders` are
accuracies [mean, low, high] with a 95 % interval over prompts, `position_bias` the share of verdicts that follow the
position. `scale` is `cai judge` on 10,000 and 100,000 pairs with the scripted engine, each in a process of its own:
processor milliseconds a pair, and peak memory in MB.
"""

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cai.constitution.principles import load_constitution
from cai.constitution.templates import Templates
from cai.data.manifest import Output
from cai.data.preferences import read_preferences
from cai.data.records import Preference
from cai.evaluation.judge_eval import evaluate_judge
from cai.feedback.judge import Judge, JudgeConfig
from cai.feedback.label import LabelJob, label_file
from cai.inference.engine import Choose, EngineConfig, Generate, ScriptedEngine
from cai.inference.models import resolve_model
from cai.inference.reporter import Reporter
from cai.inference.vllm import VllmEngine

ROOT = Path(__file__).parent.parent
LONGEST, WRITTEN, CONTEXT, AT_ONCE = 400, 96, 2048, 32
ENGINE = EngineConfig(max_model_len=CONTEXT, concurrency=AT_ONCE)
WAYS = ("one", "sixteen", "first", "written")


def chosen_pairs(file: Path, count: int) -> list[Preference]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m"))

    def tokens(pair: Preference) -> int:
        texts = [*(m["content"] for m in pair.messages), pair.chosen, pair.rejected]
        return sum(len(tokenizer.encode(text)) for text in texts)

    fitting = (pair for pair in read_preferences(file)[0] if tokens(pair) <= LONGEST)
    return [pair for pair, _ in zip(fitting, range(count), strict=False)]


def principle_first(folder: Path) -> Templates:
    """The shipped templates with the judge's principle before the conversation."""
    source = ROOT / "prompts/default"
    for name in ("critique", "revise"):
        (folder / f"{name}.jinja").write_text((source / f"{name}.jinja").read_text(encoding="utf-8"), encoding="utf-8")
    given = (source / "judge.jinja").read_text(encoding="utf-8")
    moved = given.replace(": {{ principle.judge }}\n{% endif %}", ".\n{% endif %}").replace(
        "{% block question %}\n", "{% block question %}\n{{ principle.judge }}\n\n", 1
    )
    assert moved != given
    (folder / "judge.jinja").write_text(moved, encoding="utf-8")
    return Templates(folder)


async def cost(way: str, file: Path, count: int, folder: Path) -> dict[str, float]:
    """Seconds for the pairs one way, and the share of prompt tokens found cached."""
    pairs = chosen_pairs(file, count)
    principles = load_constitution(ROOT / "constitutions/harmless.yaml").principles
    asked = principles if way in ("sixteen", "first") else principles[:1]
    templates = principle_first(folder) if way == "first" else Templates(ROOT / "prompts/default")
    engine = VllmEngine(resolve_model("smollm2-135m"), "benchmark", ENGINE)

    async def compare(pair: Preference) -> None:
        if way != "written":
            await Judge(templates, engine).compare(pair.messages, (pair.chosen, pair.rejected), asked)
            return
        for options in ({"A": pair.chosen, "B": pair.rejected}, {"A": pair.rejected, "B": pair.chosen}):
            question = templates.judge_cot(asked[0], pair.messages, options)
            await engine.generate(Generate(question, WRITTEN, 1.0, 0))

    await engine.generate(Generate([{"role": "user", "content": "Hi"}], 1, 0.0, 0))  # loads the model
    engine.prompt_tokens = engine.cached_tokens = 0
    start = time.monotonic()
    await asyncio.gather(*(compare(pair) for pair in pairs))
    seconds = time.monotonic() - start
    await engine.close()
    return {"seconds": seconds, "cached": engine.cached_tokens / engine.prompt_tokens, "pairs": len(pairs)}


def measure(way: str, file: Path, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "child", way, str(file), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{way}: {found['seconds']:.1f} s, {found['cached']:.0%} cached", file=sys.stderr, flush=True)
    return found


def costs(file: Path, count: int, repeats: int) -> dict[str, Any]:
    rounds = []
    for i in range(repeats):
        order = WAYS if i % 2 == 0 else WAYS[::-1]
        rounds.append({way: measure(way, file, count) for way in order})

    def ratio(way: str, other: str, factor: float = 1.0) -> float:
        return round(factor * statistics.median(r[way]["seconds"] / r[other]["seconds"] for r in rounds), 2)

    principles = len(load_constitution(ROOT / "constitutions/harmless.yaml").principles)
    return {
        "ensemble_cost": ratio("sixteen", "one"),
        "principle_first_cost": ratio("first", "one"),
        "against_written": ratio("written", "sixteen", principles),
        "cached": {way: round(rounds[0][way]["cached"], 3) for way in WAYS},
        "seconds": {way: [round(r[way]["seconds"], 1) for r in rounds] for way in WAYS},
    }


def judging(data: Path, model: Path, limit: int | None) -> LabelJob:
    principles = load_constitution(ROOT / "constitutions/plain.yaml")
    templates, settings = Templates(ROOT / "prompts/default"), JudgeConfig(principles=1)
    return LabelJob(data, True, limit, [model], principles, templates, settings, 0)


def worth(file: Path, limit: int | None) -> dict[str, Any]:
    """The real model under one plain principle on labelled pairs."""
    with tempfile.TemporaryDirectory() as folder:
        given, reporter = judging(file, resolve_model("smollm2-135m"), limit), Reporter(Console(stderr=True))
        report = evaluate_judge(given, Output(Path(folder) / "out"), Path(folder) / "cache.sqlite", reporter).report

    def interval(estimate: Any) -> list[float]:
        return [round(value, 3) for value in (estimate.mean, estimate.low, estimate.high)]

    return {
        "pairs": report.pairs,
        "one_order": interval(report.one_order),
        "both_orders": interval(report.accuracy),
        "position_bias": report.position_bias,
        "non_option_mass": report.non_option_mass,
        "seconds_per_pair": report.seconds_per_pair,
    }


class Forgetful(ScriptedEngine):
    """A scripted engine that does not keep what it was asked."""

    async def choose(self, request: Choose) -> list[float]:
        self.requests.clear()
        return await super().choose(request)


def scripted(count: int, folder: Path) -> dict[str, float]:
    """Label `count` pairs with an engine that costs nothing."""
    data, model = folder / "pairs.jsonl", folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with data.open("w", encoding="utf-8") as file:
        for i in range(count):
            file.write(json.dumps({"prompt": f"question {i}", "chosen": f"one {i}", "rejected": f"two {i}"}) + "\n")
    start = time.process_time()
    label_file(
        judging(data, model, None),
        Output(folder / "out"),
        folder / "cache.sqlite",
        Reporter(Console(quiet=True)),
        lambda _, fingerprint, __: Forgetful(fingerprint),
    )
    seconds = time.process_time() - start
    return {"ms": 1000 * seconds / count, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def scale(count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "scale", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{count} pairs: {found}", file=sys.stderr, flush=True)
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    if sys.argv[1] == "child":
        way, file, count = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asyncio.run(cost(way, file, count, Path(folder)))))
        return
    if sys.argv[1] == "scale":
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(scripted(int(sys.argv[2]), Path(folder))))
        return
    hhh, pairs = Path(sys.argv[1]), Path(sys.argv[2])
    count, repeats = (int(sys.argv[i]) if len(sys.argv) > i else usual for i, usual in ((3, 8), (4, 3)))
    result = {"benchmark": "judge", **costs(pairs, count, repeats)}
    result["scale"] = {str(n): scale(n) for n in (10_000, 100_000)}
    result |= {"hhh": worth(hhh, None), "pairs": worth(pairs, 300)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
