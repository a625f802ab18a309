"""What `reward: judge` did to the judge's own ratings, and what there was to learn from.

    cai run examples/judge-reward.yaml
    python benchmarks/judge_reward.py RUN            # a folder of runs/, such as runs/judge-reward
    python benchmarks/judge_reward.py spread [PROMPTS] [ANSWERS]

RUN is a finished run whose last training is rewarded by the judge, or as a control by something else, such as a rule
(`--set "train.0.reward=[{pattern: '\\bof\\b'}]"`). Its held-out answers, before and after training, are rated by all
principles of its constitution, by SmolLM2-135M. `spread` lets that model write ANSWERS (6) answers of 96 tokens to each
of PROMPTS (24) prompts, and rates them by the principles of constitutions/brief.yaml.

Reading the line of JSON: `training` has the mean rating (1 to 9) of the first and of the last five updates, where the
judge gave the reward; `held_out` the mean before and after, and `change` their difference with its 95 % interval over
prompts; `rising` counts prompts whose rating rose. Of `spread`, `within` and `between` are the standard deviations of
ratings among a prompt's answers and of prompts' means, `truncated` is the share of answers at their limit, and
`controls` the mean rating of other answers.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from cai.constitution.principles import Constitution, load_constitution
from cai.constitution.templates import Templates
from cai.data.prompts import read_prompts
from cai.data.records import Prompt
from cai.feedback.judge import JudgeConfig, Rater
from cai.inference.engine import Completion, EngineConfig, Generate
from cai.inference.models import resolve_model
from cai.inference.vllm import VllmEngine
from cai.runs.folder import RunFolder
from cai.stats.intervals import paired_change

ROOT = Path(__file__).parent.parent
WINDOW, TOKENS = 5, 96


class Judge:
    """SmolLM2-135M in vLLM, which rates by all principles of a constitution."""

    def __init__(self, constitution: Constitution) -> None:
        self.engine = VllmEngine(resolve_model("smollm2-135m"), "benchmark", EngineConfig(max_model_len=1536))
        templates = Templates(ROOT / "prompts/default", ("rate",))
        self._rater = Rater(templates, self.engine, JudgeConfig(principles="all"), 0)
        self._constitution = constitution

    async def ratings(self, answers: Sequence[tuple[Prompt, str]]) -> list[float]:
        """The mean rating of each answer, from 1 to 9."""
        rated = await asyncio.gather(*(self._rater.rate(p, text, self._constitution) for p, text in answers))
        return [fmean(rating.value for rating in one) for one in rated]


async def trained(run: RunFolder) -> dict[str, Any]:
    """The ratings during a run's last training, and of its held-out answers before and after."""
    lines = sorted(run.path.glob("train/*/metrics.jsonl"))[-1].read_text(encoding="utf-8").splitlines()
    curve = [rating for line in lines if (rating := json.loads(line).get("judge/rating")) is not None]
    rows, judge = run.evaluation(), Judge(run.constitution())
    prompts = [Prompt(id=row.prompt_id, messages=row.messages, tags=row.tags) for row in rows]
    before = await judge.ratings(list(zip(prompts, (row.before for row in rows), strict=True)))
    after = await judge.ratings(list(zip(prompts, (row.after for row in rows), strict=True)))
    await judge.engine.close()
    changes = [b - a for a, b in zip(before, after, strict=True)]
    change = paired_change(changes)
    return {
        "training": [round(fmean(part), 2) for part in (curve[:WINDOW], curve[-WINDOW:])] if curve else None,
        "held_out": [round(fmean(before), 2), round(fmean(after), 2)],
        "change": [round(value, 2) for value in (change.mean, change.low, change.high)],
        "rising": f"{sum(value > 0 for value in changes)} of {len(changes)}",
    }


async def spread(prompts: int = 24, answers: int = 6) -> dict[str, Any]:
    """How ratings vary among answers to a prompt, among prompts, and with what an answer is."""
    judge = Judge(load_constitution(ROOT / "constitutions/brief.yaml"))
    given = read_prompts(ROOT / "examples/prompts.jsonl")[0][:prompts]
    written: list[Completion] = await asyncio.gather(
        *(
            judge.engine.generate(Generate(prompt.messages, TOKENS, 1.0, 1000 * i + k))
            for i, prompt in enumerate(given)
            for k in range(answers)
        )
    )
    texts = [[c.text for c in written[i * answers : (i + 1) * answers]] for i in range(len(given))]
    samples = [await judge.ratings([(prompt, text) for text in own]) for prompt, own in zip(given, texts, strict=True)]
    controls = {
        "own": [own[0] for own in texts],
        "empty": [""] * len(given),
        "Yes.": ["Yes."] * len(given),
        "of another prompt": [texts[(i + 7) % len(given)][0] for i in range(len(given))],
    }
    means = {name: await judge.ratings(list(zip(given, said, strict=True))) for name, said in controls.items()}
    await judge.engine.close()
    return {
        "within": round(fmean(variance(values) for values in samples) ** 0.5, 2),
        "between": round(stdev(fmean(values) for values in samples), 2),
        "truncated": round(fmean(c.finish == "length" for c in written), 2),
        "controls": {name: round(fmean(values), 2) for name, values in means.items()},
    }


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    found = spread(*map(int, numbers)) if what == "spread" else trained(RunFolder(Path(what)))
    print(json.dumps({"benchmark": "judge_reward", **asyncio.run(found)}))
