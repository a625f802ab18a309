"""Soft labels against rounded ones: the calibration of a reward model trained on each, side by side.

    python benchmarks/soft_labels.py [PAIRS]

Answers are made of neutral sentences and up to four kind ones; how much better one answer is than another is planted,
P = σ(0.7 · difference in kind sentences), so that the truth is known for every held-out pair. Two reward models see the
same pairs with the same seed, one with p = P and one with P rounded to 0 or 1.

Reading the line of JSON: `ece_soft` and `ece_rounded` are calibration errors against the planted probabilities on pairs
that neither model has seen; `ratio` is rounded ÷ soft (above 1: soft labels are better calibrated); the accuracies say
how often each model finds the better answer.
"""

import json
import math
import random
import sys
import tempfile
from pathlib import Path

from cai.data.jsonl import write_rows
from cai.data.records import Message, Preference
from cai.inference.chat_template import load_tokenizer
from cai.inference.models import resolve_model
from cai.training.reward import evaluate_reward_model, pairs_that_fit
from cai.training.settings import RewardConfig
from cai.training.stage import StageSpec, run_stage

KIND = ("I am glad you asked.", "You are doing well.", "Take all the time you need.", "Thank you for telling me.")
NEUTRAL = ("It depends.", "There are several ways.", "The first is common.", "The second is rare.", "Both take a day.")
TOPICS = ("bread", "chess", "running", "Spanish", "gardens", "maps", "tea", "drawing", "bridges", "clouds")
SLOPE = 0.7


def planted(count: int, seed: int) -> list[Preference]:
    rng = random.Random(seed)

    def answer(kind: int) -> str:
        sentences = rng.sample(KIND, kind) + rng.sample(NEUTRAL, 4 - kind)
        rng.shuffle(sentences)
        return " ".join(sentences)

    rows: list[Preference] = []
    while len(rows) < count:
        kinds = rng.randint(0, 4), rng.randint(0, 4)
        first, second = answer(kinds[0]), answer(kinds[1])
        if first == second:
            continue
        p = 1 / (1 + math.exp(-SLOPE * (kinds[0] - kinds[1])))
        asked = [Message(role="user", content=f"Tell me about {rng.choice(TOPICS)}, question {len(rows)}.")]
        rows.append(
            Preference(prompt_id=f"{len(rows)}", messages=asked, chosen=first, rejected=second, p=p, source="judge")
        )
    return rows


def rounded(row: Preference) -> Preference:
    """P of one half, a tie, goes to either side by the prompt's number."""
    p = row.p if row.p != 0.5 else float(int(row.prompt_id) % 2)
    return row.model_copy(update={"p": float(p > 0.5)})


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 240
    model = resolve_model("smollm2-135m")
    training, held_out = planted(count, 0), planted(120, 1)
    fit, _ = pairs_that_fit(load_tokenizer(model), held_out, 128)
    settings = RewardConfig(
        stage="reward", holdout=0, num_train_epochs=3, per_device_train_batch_size=8, learning_rate=3e-4, max_length=128
    )  # fmt: skip
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in {"soft": training, "rounded": [rounded(row) for row in training]}.items():
            data = Path(folder) / f"{name}.jsonl"
            write_rows(data, rows)
            trained = run_stage(StageSpec(settings, data, model, Path(folder) / name), lambda event: None)
            reports[name] = evaluate_reward_model(trained, fit)
    result = {f"ece_{name}": round(report["ece"]["mean"], 4) for name, report in reports.items()}
    result |= {f"accuracy_{name}": round(report["accuracy"]["mean"], 3) for name, report in reports.items()}
    ratio = round(reports["rounded"]["ece"]["mean"] / max(reports["soft"]["ece"]["mean"], 1e-3), 2)
    print(json.dumps({"benchmark": "soft_labels", "pairs": count, "ratio": ratio, **result}))


if __name__ == "__main__":
    main()
