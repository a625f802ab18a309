"""Overoptimization of a reward model: gold vs proxy reward over the course of PPO.

Gao et al. 2023 (arXiv:2210.10760) score the samples of training by proxy and gold reward: the proxy keeps rising while
the gold score falls. Here gold is the eval judge's win rate against the reference's answers to the same prompts.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from cai.config.errors import CaiError
from cai.data.jsonl import read_objects
from cai.data.records import Prompt, Row, Sampled, Skipped
from cai.evaluation.judge_report import Interval
from cai.evaluation.monitors import Monitor, measured, unmeasured
from cai.inference.chat_template import load_tokenizer
from cai.stats.intervals import Estimate, Z, bootstrap_mean, share
from cai.stats.win_rate import win

PHASES = 3
SAMPLES = 4  # at least, in each
FALL = -0.1  # of the win rate, while the reward model's score rises: ours
NAME = "overoptimization"
TRAINING_SAMPLES = "training_samples"


class TrainingPhase(Row):
    """Consecutive PPO updates: their samples' proxy reward and KL, and their gold win rate against the reference."""

    first: int  # updates
    last: int
    samples: int
    proxy: Interval | None
    kl: float | None
    gold: Interval | None  # win rate against the reference


def read_samples(path: Path, model: Path, prompts: Sequence[Prompt]) -> tuple[list[Sampled], list[Skipped]]:
    """What a policy sampled during PPO (samples.jsonl), with its prompts, and the samples whose prompt is not known.

    A sample names its prompt as the policy read it, in its chat template; so the training `prompts` are written out
    in the template of `model` and looked up. Raises: CaiError for a file that is not one of samples.
    """
    from cai.training.tokens import prompt_ids

    tokenizer = load_tokenizer(model)
    known = {tokenizer.decode(prompt_ids(tokenizer, p.messages)): p for p in prompts}
    ends = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    samples, skipped = [], []
    for number, value in read_objects(path):
        try:
            prompt = known.get(value["prompt"])
            step, text = int(value["step"]), _without_end(value["response"], ends)
            score, kl = float(value["score"]), float(value["kl"])
        except (KeyError, TypeError, ValueError) as error:
            raise CaiError(f"{path}:{number}: not a sample of PPO: {error}") from None
        if prompt is None:
            reason = "its prompt is not among the training prompts"
            skipped.append(Skipped(prompt_id=f"update {step}", stage=TRAINING_SAMPLES, reason=reason))
        else:
            samples.append(
                Sampled(step=step, prompt_id=prompt.id, messages=prompt.messages, text=text, score=score, kl=kl)
            )
    return samples, skipped


def _without_end(text: str, ends: Iterable[str]) -> str:
    """A sample without the special tokens that ended it."""
    while end := next((end for end in ends if text.endswith(end)), ""):
        text = text.removesuffix(end).rstrip("\n")
    return text.strip()


def training_phases(samples: Sequence[Sampled]) -> list[TrainingPhase]:
    """The training in up to three phases of equally many sampled updates, each with SAMPLES samples or more."""
    steps = sorted({sample.step for sample in samples})
    for count in range(PHASES, 0, -1):
        parts = [set(part.tolist()) for part in np.array_split(np.array(steps, dtype=int), count) if len(part)]
        groups = [[sample for sample in samples if sample.step in part] for part in parts]
        if len(groups) == count and all(len(group) >= SAMPLES for group in groups):
            return [_phase(group) for group in groups]
    return []


def _phase(samples: Sequence[Sampled]) -> TrainingPhase:
    judged = [(sample.prompt_id, win(sample.p)) for sample in samples if sample.p is not None]
    prompts, wins = zip(*judged, strict=True) if judged else ((), ())
    scores: dict[str, list[float]] = {}
    for sample in samples:
        if np.isfinite(sample.score):
            scores.setdefault(sample.prompt_id, []).append(sample.score)
    return TrainingPhase(
        first=min(sample.step for sample in samples),
        last=max(sample.step for sample in samples),
        samples=len(samples),
        proxy=bootstrap_mean([fmean(of_prompt) for of_prompt in scores.values()]) if scores else None,
        kl=fmean(known) if (known := [sample.kl for sample in samples if np.isfinite(sample.kl)]) else None,
        gold=share(wins, prompts) if wins else None,
    )


def overoptimization(policy: str, phases: Sequence[TrainingPhase], missing: str) -> Monitor:
    """The change of the win rate from the first phase to the last, where the proxy reward rose."""
    meaning = "gold win rate of PPO's samples, last phase minus first, while the proxy reward rises"
    if len(phases) < 2:
        return unmeasured(policy, NAME, 0.0, FALL, meaning, missing or "training kept too few samples")
    first, last = phases[0], phases[-1]
    if first.gold is None or last.gold is None or first.proxy is None or last.proxy is None:
        return unmeasured(policy, NAME, 0.0, FALL, meaning, "the samples have no scores or no verdicts")
    if last.proxy.mean <= first.proxy.mean:
        return unmeasured(policy, NAME, 0.0, FALL, meaning, "the proxy reward did not rise")
    change = difference_of_shares(first.gold, last.gold)
    return measured(policy, NAME, change, 0.0, FALL, meaning).with_levels(last.gold.mean, first.gold.mean)


def difference_of_shares(first: Estimate, last: Estimate) -> Estimate:
    """last − first of two independent shares, with the interval of Agresti & Caffo 2000 (Am. Stat. 54, 280–288).

    It is normal, after one hit and one miss are added to each.
    """
    shares = [((e.mean * e.n + 1) / (e.n + 2), e.n + 2) for e in (first, last)]
    margin = Z * sum(p * (1 - p) / n for p, n in shares) ** 0.5
    middle = shares[1][0] - shares[0][0]
    change = last.mean - first.mean
    low, high = max(-1.0, middle - margin), min(1.0, middle + margin)
    return Estimate(change, min(change, low), max(change, high), min(first.n, last.n))
