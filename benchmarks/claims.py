"""What the tool claims, against experiments of known truth: false stars, power of plans, coverage of intervals.

    python benchmarks/claims.py [COMPARISONS]

Reading the line of JSON:

- `false_stars`: of COMPARISONS (500) comparisons of two runs of one recipe, the share with any significant effect in
  the whole output of `cai compare` (metrics, win rates, effects of principles, principles against others): ≤ 5 %. A
  training moves all answers of its policy, with the deviation that three seeds of the demo's DPO had: mean answers of
  38, 48 and 60 words on 40 prompts. `one_training` has one policy a run, `three_trainings` three. `attribute` is a
  matrix of `cai attribute`. `over_prompts` is what testing such policies over prompts alone would invent.
- `power`: of planned designs, how often the planned difference is significant, on average over pilots of 40 prompts
  (`prompts`; of flags, such as being truncated, `flags`) and of three trainings a run (`trainings`): 75 to 85 %.
- `coverage`: for each kind of interval that the tool prints, with 8, 16 and 64 prompts, how often it holds the truth
  (93 to 97 %; a trial is a new truth and a new sample, so that the steps of discrete intervals average out). `n/a`: too
  few prompts for an interval.
- `outside`: the intervals beyond 93 to 97 %; of 4,000 trials, ± 0.7 points are chance. Above is wide, below too narrow.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cai.compare.attribution import outcome_effects
from cai.compare.compare import compare_read
from cai.compare.reading import Answered, Labelled, Labels, PairVerdict, PolicyData, Revised, Round, RunData
from cai.compare.record import RunComparison
from cai.compare.sample_size import needed
from cai.constitution.principles import Constitution
from cai.data.records import Message, Prompt, Scored
from cai.evaluation.monitors import difference_of_shares, ratio_of_means
from cai.evaluation.scores import length_correlation, ratio_of_groups
from cai.evaluation.win_rates import Outcome, rate
from cai.feedback.metrics import EVALUATION_METRICS, LABEL_METRICS, REVISION_METRICS, ROUND_METRICS
from cai.runs.folder import RunFolder
from cai.stats.agreement import agreement, calibration_error
from cai.stats.intervals import bootstrap_mean, paired_change, predicted, share
from cai.stats.power import differing_share, planned_flags, planned_prompts
from cai.stats.significance import ALPHA, Effect, contrasts, corrected, paired
from cai.stats.trainings import paired_trainings, two_level
from cai.stats.win_rate import length_controlled_win_rate

TRAINING = 11.0  # words: the deviation of 38, 48 and 60, of three trainings that differ in their seed
PROMPTS, PRINCIPLES = 40, ("calm", "plain", "short", "direct")
TRIALS = 4000
Rng = np.random.Generator


def constitution() -> Constitution:
    texts = [{"id": i, "critique": i, "revision": i, "judge": i} for i in PRINCIPLES]
    return Constitution.model_validate({"name": "made", "principles": texts})


KNOWN = constitution()
IDS = [f"p{i}" for i in range(PROMPTS)]
HELD_OUT = [f"h{i}" for i in range(PROMPTS)]
ROWS = {
    i: Prompt(id=i, messages=[Message(role="user", content=i)], tags=["a" if int(i[1:]) % 2 else "b"])
    for i in [*IDS, *HELD_OUT]
}
MANIFEST = {
    "config": {},
    "held_out": HELD_OUT,
    "eval_constitution": {"fingerprint": "e"},
    "model": "m",
    "judge_models": ["m"],
    "templates": "t",
}

EMPTY = tempfile.TemporaryDirectory(prefix="cai-claims-")  # of a run without texts
Path(EMPTY.name, "preferences.jsonl").touch()


class Recipe:
    """What the runs of one comparison have in common: their prompts, and which principle each round samples."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.words = rng.normal(45, 20, PROMPTS)
        self.drawn = rng.integers(0, len(PRINCIPLES), (PROMPTS, 2))
        self.better = rng.normal(0, 0.8, PROMPTS)

    def run(self, trainings: int) -> RunData:
        run = RunData(RunFolder(Path(EMPTY.name)), dict(MANIFEST), KNOWN, dict(ROWS))
        run.rows["prompts"] = 2 * PROMPTS
        run.axes = {"helpful": {}, "safe": {}}
        run.revised = {i: self._revised(n) for n, i in enumerate(IDS)}
        run.labels = Labels(
            pairs={i: [Labelled("judge", n, float(self.rng.beta(4, 3)))] for n, i in enumerate(IDS)},
            revisions={i: {PRINCIPLES[self.drawn[n, 1]]: float(self.rng.beta(4, 3))} for n, i in enumerate(IDS)},
            verdicts={p: [PairVerdict(i, bool(self.rng.random() < 0.3)) for i in IDS] for p in PRINCIPLES},
        )
        for metric in (*REVISION_METRICS, *LABEL_METRICS):
            run.metrics[metric.key] = dict(zip(IDS, self._values(metric.unit), strict=True))
        run.policies = [self._policy() for _ in range(trainings)]
        for metric in EVALUATION_METRICS:
            run.metrics[metric.key] = {
                i: float(np.mean([p.metrics[metric.key][i] for p in run.policies])) for i in HELD_OUT
            }
        return run

    def _values(self, unit: str) -> list[float]:
        if unit == "words":
            return list(np.maximum(0, self.words + self.rng.normal(0, 15, PROMPTS)).round())
        return list((self.rng.random(PROMPTS) < 0.2).astype(float))

    def _revised(self, n: int) -> Revised:
        rounds = []
        for place in self.drawn[n]:
            values = {m.key: float(self.rng.random() < 0.3) for m in ROUND_METRICS}
            rounds.append(
                Round(
                    PRINCIPLES[place],
                    values | {"words": float(self.rng.normal(0, 15)), "edit": float(self.rng.beta(2, 2))},
                )
            )
        return Revised(rounds, "text")

    def _policy(self) -> PolicyData:
        """A policy whose training moves the length of all its answers, and with it what the judge thinks of them."""
        moved = self.rng.normal(0, 1)
        words = np.maximum(1, self.words + TRAINING * moved + self.rng.normal(0, 15, PROMPTS)).round()
        p = 1 / (1 + np.exp(-(self.better + 0.8 * moved + self.rng.normal(0, 0.7, PROMPTS))))
        cut = (words > 70).astype(float)
        values: dict[str, Any] = {
            "after_words": words,
            "after_better": p,
            "win_rate": (p > 0.5) * 1.0,
            "after_truncated": cut,
            "before_words": self.words,
            "before_truncated": 0 * cut,
        }
        for metric in EVALUATION_METRICS:
            values.setdefault(metric.key, np.clip(0.3 + 0.1 * moved + self.rng.normal(0, 0.2, PROMPTS), 0, 1))
        answered = {
            i: Answered(float(p[n]), 0, f"text {self.rng.random()}", ROWS[i].tags, "j") for n, i in enumerate(HELD_OUT)
        }
        return PolicyData(
            answered, {key: dict(zip(HELD_OUT, map(float, of), strict=True)) for key, of in values.items()}
        )


def stars(found: RunComparison) -> int:
    """Every significant effect of an output."""
    effects: list[Effect] = []
    for pair in found.pairs:
        effects += [m.effect for m in pair.metrics] + [row.effect for row in pair.head_to_head]
        for p in pair.principles:
            effects += [*p.effects.values()]
            effects += [e for use in (p.a, p.b) if use for e in use.against_others.values()]
    return sum(effect.significant for effect in effects)


def false_stars(comparisons: int) -> dict[str, float]:
    counts = {"one_training": 0, "three_trainings": 0, "attribute": 0, "over_prompts": 0}
    for number in range(comparisons):
        recipe = Recipe(np.random.default_rng(number))
        ones = [recipe.run(1) for _ in range(2)]
        counts["one_training"] += stars(compare_read(ones, 0)) > 0
        length = [np.array([*run.metrics["after_words"].values()]) for run in ones]
        counts["over_prompts"] += (paired(length[1] - length[0]).p or 0) <= ALPHA
        recipe = Recipe(np.random.default_rng([1, number]))
        counts["three_trainings"] += stars(compare_read([recipe.run(3), recipe.run(3)], 0)) > 0
        whole = recipe.run(3)
        cells = {
            (place, name): effect
            for place in range(len(PRINCIPLES))
            for name, effect in outcome_effects(recipe.run(3), whole, [*IDS, *HELD_OUT])
        }
        counts["attribute"] += any(e.significant for e in corrected({"effects": cells})["effects"].values())
    return {name: count / comparisons for name, count in counts.items()}


def power(designs: int, tests: int = 20) -> dict[str, float]:
    """Of a planned difference that is one of so many tests in one table."""
    rng, found = np.random.default_rng(0), {"prompts": 0, "flags": 0, "trainings": 0}
    for _ in range(designs):
        n = planned_prompts(float(rng.normal(0, 20, PROMPTS).std(ddof=1)), PROMPTS - 1, 10.0, ALPHA / tests)
        found["prompts"] += (paired(rng.normal(10, 20, n or 2)).p or 0) <= ALPHA / tests

        differing = differing_share(int(rng.binomial(PROMPTS, 0.3)), PROMPTS)
        drawn = rng.random(planned_flags(differing, 0.15, ALPHA / tests) or 2)
        flips = np.where(drawn < 0.225, 1.0, np.where(drawn < 0.3, -1.0, 0.0))  # 15 % more gain a flag than lose it
        found["flags"] += (paired(flips).p or 0) <= ALPHA / tests

        def policies(trainings: int, prompts: int, difference: float) -> tuple[Any, Any]:
            a, b = (rng.normal(0, TRAINING, (trainings, 1)) + rng.normal(0, 15, (trainings, prompts)) for _ in "ab")
            return a, b + difference + rng.normal(0, 10, prompts)

        prompts, trainings, _ = needed(two_level(*policies(3, PROMPTS, 0.0)), 25.0, ALPHA)
        if prompts and trainings:
            found["trainings"] += (two_level(*policies(trainings, prompts, 25.0)).p or 0) <= ALPHA
    return {name: count / designs for name, count in found.items()}


Trial = Callable[[Rng, int], tuple[Any, float]]  # an interval, as of Estimate or Effect, and the truth


def _wins(rng: Rng, n: int) -> tuple[Any, float]:
    p, ties = rng.uniform(0.1, 0.9), rng.uniform(0, 0.5)
    return share(np.where(rng.random(n) < ties, 0.5, rng.random(n) < p).tolist()), ties / 2 + (1 - ties) * p


def _probabilities(rng: Rng, n: int) -> tuple[Any, float]:
    mean, certainty = rng.uniform(0.3, 0.8), rng.choice([1, 3, 10])
    return share(rng.beta(mean * certainty, (1 - mean) * certainty, n).tolist()), mean


def _pairs(rng: Rng, n: int) -> tuple[list[float], list[int], float]:
    """Eight pairs a prompt that are right together."""
    mean, together = rng.uniform(0.55, 0.9), rng.choice([1, 4, 20])
    right = rng.binomial(1, np.repeat(rng.beta(mean * together, (1 - mean) * together, n), 8))
    return right.astype(float).tolist(), np.repeat(np.arange(n), 8).tolist(), float(mean)


def _accuracy(rng: Rng, n: int) -> tuple[Any, float]:
    right, _, mean = _pairs(rng, n)
    return share(np.reshape(right, (n, 8)).mean(axis=1).tolist()), mean


def _kappa(rng: Rng, n: int) -> tuple[Any, float]:
    right, prompts, mean = _pairs(rng, n)
    return agreement([0.5 + 0.4 * (2 * x - 1) for x in right], [1.0] * len(right), prompts), 2 * mean - 1


def _samples(rng: Rng, n: int) -> tuple[Any, float]:
    """One to eight samples a prompt, which win together."""
    mean, together = rng.uniform(0.2, 0.8), rng.choice([1, 4, 20])
    prompts = np.repeat(np.arange(n), rng.integers(1, 9, n))
    p = rng.beta(mean * together, (1 - mean) * together, n)[prompts]
    return share((rng.random(len(prompts)) < p).astype(float).tolist(), prompts.tolist()), float(mean)


def _calibration(rng: Rng, n: int) -> tuple[Any, float]:
    """A judge that is right less often than it says, or as often, about a pair a prompt."""
    confidence, slope = 0.5 + 0.5 * rng.beta(2, 1, n), rng.choice([0.0, 0.3, 0.6, 1.0])
    labels = rng.random(n) < 0.5 + slope * (confidence - 0.5)
    return calibration_error(confidence.tolist(), labels.astype(float).tolist(), range(n)), (1 - slope) / 3


def _sure_calibration(rng: Rng, n: int) -> tuple[Any, float]:
    """A judge that is mostly sure, and right nearly as often as it says."""
    confidence, error = rng.uniform(0.8, 0.999, n), rng.choice([0.0, 0.03, 0.08])
    labels = rng.random(n) < confidence - error
    return calibration_error(confidence.tolist(), labels.astype(float).tolist(), range(n)), float(error)


def _correlation(rng: Rng, n: int) -> tuple[Any, float]:
    rho, tokens, noise = rng.uniform(-0.8, 0.8), rng.normal(0, 1, n), rng.normal(0, 1, n)
    rewards = rho * tokens + (1 - rho**2) ** 0.5 * noise
    rows = [
        Scored(policy="p", of="answers", prompt_id=str(i), tokens=round(1000 + 200 * t), rewards=[float(r)])
        for i, (t, r) in enumerate(zip(tokens, rewards, strict=True))
    ]
    return length_correlation(rows, seed=int(rng.integers(1e9))), float(rho)


def _forms(rng: Rng, n: int) -> tuple[Any, float]:
    """Thirteen forms of a request, of which a policy and its reference comply with some."""
    own, there = rng.uniform(0.2, 0.8, 2)
    p, q = (rng.beta(4 * mean, 4 * (1 - mean), n) for mean in (own, there))
    return paired_change(((rng.binomial(13, p) - rng.binomial(13, q)) / 13).tolist()), float(own - there)


def _change(rng: Rng, n: int) -> tuple[Any, float]:
    up, down, drawn = rng.uniform(0.05, 0.5), rng.uniform(0, 0.3), rng.random(n)
    return paired_change(np.where(drawn < up, 1.0, np.where(drawn > 1 - down, -1.0, 0.0)).tolist()), up - down


def _mean(rng: Rng, n: int) -> tuple[Any, float]:
    return bootstrap_mean(rng.gamma(3, 2, n).tolist(), int(rng.integers(1e9))), 6.0


def _difference(rng: Rng, n: int) -> tuple[Any, float]:
    return paired(rng.normal(5, 20, n) + rng.exponential(10, n) - 10), 5.0


def _win_difference(rng: Rng, n: int) -> tuple[Any, float]:
    p, ties = rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.5)
    return paired(np.where(rng.random(n) < ties, 0.0, (rng.random(n) < p) - 0.5)), (1 - ties) * (p - 0.5)


def _preference(rng: Rng, n: int) -> tuple[Any, float]:
    mean, certainty = rng.uniform(0.3, 0.7), rng.choice([3, 30])
    return paired(rng.beta(mean * certainty, (1 - mean) * certainty, n) - 0.5), mean - 0.5


def _two_level(rng: Rng, n: int, trainings: int = 3) -> tuple[Any, float]:
    prompts, change = rng.normal(45, 20, n), rng.normal(5, 10, n)
    a, b = (rng.normal(0, TRAINING, (trainings, 1)) + rng.normal(0, 15, (trainings, n)) + prompts for _ in "ab")
    return two_level(a, b + change), 5.0


def _policy_wins(rng: Rng, n: int, trainings: int = 3) -> tuple[Any, float]:
    """Pairs of policies, whose trainings move their log-odds on all prompts."""
    better, nodes = rng.normal(0, 0.5), np.polynomial.hermite_e.hermegauss(40)
    odds = better + rng.normal(0, 0.5, (trainings, 1)) + rng.normal(0, 1, n)
    wins = (rng.random((trainings, n)) < 1 / (1 + np.exp(-odds))).astype(float)
    mean = np.average(1 / (1 + np.exp(-better - np.hypot(0.5, 1) * nodes[0])), weights=nodes[1])
    return paired_trainings(wins - 0.5), float(mean) - 0.5


def _contrast(rng: Rng, n: int) -> tuple[Any, float]:
    size = max(3, n // 3)
    values = np.concatenate([rng.normal(3, 2, size), rng.normal(0, 1, n - size)])
    return contrasts(["k"] * size + ["r"] * (n - size), {"x": values.tolist()})["k", "x"], 3.0


def _flags(rng: Rng, n: int) -> tuple[Any, float]:
    size, p, q = n // 2, rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)
    values = np.concatenate([rng.random(size) < p, rng.random(n - size) < q]).astype(float)
    return contrasts(["k"] * size + ["r"] * (n - size), {"x": values.tolist()}).get(("k", "x")), p - q


def _ratio(rng: Rng, n: int) -> tuple[Any, float]:
    length = rng.lognormal(3.5, 0.4, n)
    own = length * rng.lognormal(0.2, 0.3, n)
    return ratio_of_means(own, length, seed=int(rng.integers(1e9))), float(np.exp(0.2 + 0.3**2 / 2))


def _ensemble(rng: Rng, n: int) -> tuple[Any, float]:
    return ratio_of_groups(rng.gamma(4, 0.3, n), rng.gamma(4, 0.2, n), seed=int(rng.integers(1e9))), 1.5


def _equal_length(rng: Rng, n: int) -> tuple[Any, float]:
    theta, longer = rng.uniform(-0.8, 0.8), rng.normal(0, 100, n)
    p = 1 / (1 + np.exp(-(theta + 0.8 * np.tanh(longer / 100))))
    wins = (rng.random(n) < p).astype(float)
    found = length_controlled_win_rate(wins.tolist(), longer.tolist(), seed=int(rng.integers(1e9)))
    return found.win_rate, float(1 / (1 + np.exp(-theta)))


def _elo(rng: Rng, n: int) -> tuple[Any, float]:
    strength = rng.uniform(-1, 1)
    wins = (rng.random(n) < 1 / (1 + np.exp(-strength))).astype(float)
    prompts = [f"p{i}" for i in range(n)]
    rows = [Outcome(i, "b", "a", float(w)) for i, w in zip(prompts, wins, strict=True)]
    return rate(rows, ["a", "b"], prompts, "overall", seed=int(rng.integers(1e9))).ratings[1], 400 / np.log(
        10
    ) * strength


def _gold(rng: Rng, n: int) -> tuple[Any, float]:
    p, q = rng.uniform(0.2, 0.8, 2)
    first, last = (share((rng.random(n) < x).astype(float).tolist()) for x in (p, q))
    return difference_of_shares(first, last), float(q - p)


def _decoys(rng: Rng, n: int) -> tuple[Any, float]:
    """The attack is one more spelling, drawn as the decoys are."""
    one, others = rng.normal(0, 0.05), rng.normal(0, 0.05, 8)
    prompts = rng.normal(0, 0.05, n)
    return predicted(
        [(one - other + part).tolist() for other, part in zip(others, np.array_split(prompts, 8), strict=True)]
    ), 0.0


INTERVALS: dict[str, Trial] = {
    "difference of a metric": _difference,
    "win rate less ½": _win_difference,
    "one judge's preference less ½": _preference,
    "difference of policies, three trainings": _two_level,
    "difference of policies, two trainings": lambda rng, n: _two_level(rng, n, trainings=2),
    "win rate of policies, three trainings": _policy_wins,
    "win rate of policies, two trainings": lambda rng, n: _policy_wins(rng, n, trainings=2),
    "principle against others": _contrast,
    "principle against others, flags": _flags,
    "win rate": _wins,
    "P(better)": _probabilities,
    "accuracy": _accuracy,
    "κ": _kappa,
    "calibration error": _calibration,
    "calibration error of a sure judge": _sure_calibration,
    "gold win rate, several samples a prompt": _samples,
    "change from the reference": _change,
    "change, several forms a request": _forms,
    "mean (KL, reward, log loss)": _mean,
    "length ratio": _ratio,
    "ensemble ratio": _ensemble,
    "reward-length correlation": _correlation,
    "length-controlled win rate": _equal_length,
    "Elo": _elo,
    "gold win rate, last phase less first": _gold,
    "injection, over decoys": _decoys,
}


def coverage(trials: int) -> list[dict[str, Any]]:
    rows = []
    for name, trial in INTERVALS.items():
        for n in (8, 16, 64):
            rng, held, known = np.random.default_rng(n), 0, 0
            for _ in range(trials):
                interval, truth = trial(rng, n)
                if interval is None or (interval.low is None and interval.high is None):
                    continue
                known += 1
                low, high = (
                    bound if bound is not None else side
                    for bound, side in ((interval.low, -np.inf), (interval.high, np.inf))
                )
                held += low <= truth <= high
            rows.append({"name": name, "n": n, "coverage": round(held / known, 3) if known > trials / 10 else "n/a"})
    return rows


if __name__ == "__main__":
    comparisons = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    started = time.process_time()
    covered = coverage(min(TRIALS, 8 * comparisons))
    result = {
        "false_stars": false_stars(comparisons),
        "power": power(comparisons),
        "coverage": covered,
        "outside": [row for row in covered if row["coverage"] != "n/a" and not 0.93 <= row["coverage"] <= 0.97],
        "cpu_seconds": round(time.process_time() - started),
    }
    print(json.dumps(result, ensure_ascii=False))
