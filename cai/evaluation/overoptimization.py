"""Over-optimisation on the way: does the eval judge still like what the reward model likes more and more?

Gao et al. 2023 (arXiv:2210.10760) score the same samples by proxy and gold as training goes on; the proxy climbs, and
the gold score turns. Here the gold is an eval judge's win rate against the reference's answers to the same prompts.
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
from cai.stats.intervals import Estimate, Z, bootstrap_mean, share
from cai.stats.win_rate import win

STRETCHES = 3
SAMPLES = 4  # at least, in each
FALL = -0.1  # of the win rate, while the reward model's score rises: ours
NAME = "over-optimisation"
TRAINING_SAMPLES = "training_samples"


class Stretch(Row):
    """Some updates of a training: their samples by the reward model, and by the eval judge against the reference."""

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
    from transformers import AutoTokenizer

    from cai.training.tokens import prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(model)
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
            reason = "its prompt is not among those of the training that are known"
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


def stretches(samples: Sequence[Sampled]) -> list[Stretch]:
    """The training in up to three stretches of equally many sampled updates, each with SAMPLES samples or more."""
    steps = sorted({sample.step for sample in samples})
    for count in range(STRETCHES, 0, -1):
        parts = [set(part.tolist()) for part in np.array_split(np.array(steps, dtype=int), count) if len(part)]
        groups = [[sample for sample in samples if sample.step in part] for part in parts]
        if len(groups) == count and all(len(group) >= SAMPLES for group in groups):
            return [_stretch(group) for group in groups]
    return []


def _stretch(samples: Sequence[Sampled]) -> Stretch:
    wins = [win(sample.p) for sample in samples if sample.p is not None]
    finite = [sample.score for sample in samples if np.isfinite(sample.score)]
    return Stretch(
        first=min(sample.step for sample in samples),
        last=max(sample.step for sample in samples),
        samples=len(samples),
        proxy=bootstrap_mean(finite) if finite else None,
        kl=fmean(known) if (known := [sample.kl for sample in samples if np.isfinite(sample.kl)]) else None,
        gold=share(wins) if wins else None,
    )


def over_optimisation(policy: str, course: Sequence[Stretch], missing: str) -> Monitor:
    """The change of the win rate from the first stretch to the last, where the reward model's score rose."""
    meaning = "win rate of the samples by the eval judge, last stretch less first, while the reward rises"
    if len(course) < 2:
        return unmeasured(policy, NAME, 0.0, FALL, meaning, missing or "too few samples were kept on the way")
    first, last = course[0], course[-1]
    if first.gold is None or last.gold is None or first.proxy is None or last.proxy is None:
        return unmeasured(policy, NAME, 0.0, FALL, meaning, "the samples have no scores or no verdicts")
    if last.proxy.mean <= first.proxy.mean:
        return unmeasured(policy, NAME, 0.0, FALL, meaning, "the reward model's score did not rise")
    change = difference_of_shares(first.gold, last.gold)
    return measured(policy, NAME, change, 0.0, FALL, meaning).with_levels(last.gold.mean, first.gold.mean)


def difference_of_shares(first: Estimate, last: Estimate) -> Estimate:
    """last − first of two independent shares, with the interval of Agresti & Caffo 2000 (Am. Stat. 54, 280–288).

    It is normal, after one hit and one miss are added to each.
    """
    shares = [((e.mean * e.n + 1) / (e.n + 2), e.n + 2) for e in (first, last)]
    margin = Z * sum(p * (1 - p) / n for p, n in shares) ** 0.5
    middle = shares[1][0] - shares[0][0]
    found = last.mean - first.mean
    low, high = max(-1.0, middle - margin), min(1.0, middle + margin)
    return Estimate(found, min(found, low), max(found, high), min(first.n, last.n))
