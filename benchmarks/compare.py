"""What it takes to compare two large runs: seconds and memory of one process that prints everything as JSON.

    python benchmarks/compare.py [ROWS]

Two runs of ROWS (100,000) rows are made up. A prompt has two rounds of revision by the sixteen principles of
`constitutions/harmless.yaml`, a revision pair, and a judged pair with four verdicts; a third as many prompts are held
out and evaluated on all three axes. Answers have 40 to 110 words of a Zipf vocabulary, and a revision keeps half of
them. No text of B is a text of A, so that nothing is saved by runs being alike.

Reading the line of JSON: `seconds` and `peak_gb` are those of `cai compare a b --json`, start-up included, and
`processor_seconds` what it used of a processor, which says more on a busy machine; `mb` is the size of both runs.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cai.constitution.principles import Constitution, assign, load_constitution
from cai.data.jsonl import write_rows
from cai.data.manifest import MANIFEST_JSON
from cai.data.records import Answer, Judgement, Message, Preference, Prompt, Revision, Verdict
from cai.evaluation.evaluation_plan import HELD_OUT, HELPFUL, OVERALL, SAFE
from cai.evaluation.policy_report import ANSWERS, COMPARISONS
from cai.runs.folder import RunFolder

ROUNDS = 2
AXES = (OVERALL, HELPFUL, SAFE)
VOCABULARY = [f"word{number}" for number in range(20_000)]
WEIGHTS = [1 / (number + 1) for number in range(len(VOCABULARY))]
ROOT = Path(__file__).parent.parent


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        rows = [make_run(RunFolder(runs / name), count * 3 // 17, seed) for seed, name in enumerate(("a", "b"))]
        size = sum(path.stat().st_size for path in runs.rglob("*.jsonl"))
        started = time.perf_counter()
        command = [sys.executable, "-m", "cai.cli.main", "compare", "a", "b", "--json", "--runs", str(runs)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "seconds": round(seconds, 1),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "rows": rows,
        "mb": round(size / 1e6),
    }
    print(json.dumps({"benchmark": "compare", **found}))


def make_run(folder: RunFolder, prompts: int, seed: int) -> int:
    """A finished run with made-up rows; returns how many."""
    principles = load_constitution(ROOT / "constitutions/harmless.yaml")
    folder.path.mkdir(parents=True)
    shutil.copy(ROOT / "constitutions/harmless.yaml", folder.constitution_yaml)
    config = {"seed": seed, "revise": {"rounds": ROUNDS, "critique": True}, "train": [{"stage": "dpo"}]}
    manifest = {
        "config": config,
        "eval_constitution": {"fingerprint": "plain"},
        "model": "m",
        "judge_models": ["m"],
        "templates": "t",
    }
    folder.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    folder.summary_json.write_text("{}", encoding="utf-8")
    words = Words(seed)
    asked = [prompt(number, random.Random(number)) for number in range(prompts + prompts // 3)]
    count = write_rows(folder.prompts_jsonl, asked)
    preferences: list[Preference] = []
    revisions = revise(asked[:prompts], principles, words, preferences, seed)
    count += write_rows(folder.revisions_jsonl, revisions)
    count += write_rows(folder.preferences_jsonl, preferences)
    count += evaluate(folder.eval, asked[prompts:], words)
    return count + write_rows(folder.skipped_jsonl, [])


class Words:
    """Texts of a Zipf vocabulary."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"texts {seed}")
        self._drawn = self.rng.choices(VOCABULARY, WEIGHTS, k=1_000_000)

    def text(self) -> str:
        start, length = self.rng.randrange(900_000), self.rng.randint(40, 110)
        return " ".join(self._drawn[start : start + length])

    def like(self, text: str) -> str:
        """A text that keeps half of the words of another."""
        return " ".join([word for word in text.split() if self.rng.random() < 0.5] + self.text().split()[:40])


def prompt(number: int, rng: random.Random) -> Prompt:
    text = " ".join(rng.choices(VOCABULARY[:2000], k=25))
    return Prompt(id=f"p{number}", messages=[Message(role="user", content=text)], tags=[f"tag{number % 7}"])


def revise(
    asked: list[Prompt], principles: Constitution, words: Words, preferences: list[Preference], seed: int
) -> Iterator[Revision]:
    """Two rounds a prompt; its pairs are added to `preferences`."""
    for one in asked:
        draft = answer = words.text()
        drawn = []
        for number in range(1, ROUNDS + 1):
            principle = assign(principles, 0, one.id, f"round {number}")[0]
            revision = words.like(answer)
            drawn.append(principle)
            yield Revision(
                prompt_id=one.id,
                messages=one.messages,
                tags=one.tags,
                round=number,
                draft=draft,
                before=answer,
                principle_id=principle.id,
                principle_hash=principle.fingerprint,
                critique=words.text(),
                revision=revision,
                truncated=["revision"] if words.rng.random() < 0.2 else [],
                flags=["copied_critique"] if words.rng.random() < 0.1 else [],
                model="m",
                templates="t",
                seed=seed,
            )
            answer = revision
        pair = {"prompt_id": one.id, "messages": one.messages, "tags": one.tags, "model": "m", "judge": "m"}
        said = [verdict(principle.id, words.rng) for principle in drawn]
        preferences.append(Preference(**pair, chosen=answer, rejected=draft, p=1.0, source="revision", verdicts=said))
        said = [verdict(principle.id, words.rng) for principle in assign(principles, 0, one.id, "judge", 4)]
        preferences.append(
            Preference(**pair, chosen=draft, rejected=words.text(), p=0.6, source="judge", verdicts=said)
        )


def verdict(principle: str, rng: random.Random) -> Verdict:
    forward, reverse = rng.random(), rng.random()
    return Verdict(
        principle_id=principle, principle_hash="h", p_forward=forward, p_reverse=reverse, non_option_mass=0.1
    )


def evaluate(folder: Path, held_out: list[Prompt], words: Words) -> int:
    """Answers of the base and of the policy to each prompt, and a judgement by axis; returns the number of rows."""
    folder.mkdir()
    names = {"base": "m", "policy": "n"}
    manifest = {
        "command": "cai eval",
        "policies": [{"name": name, "model": model} for name, model in names.items()],
        "axes": {axis: {"name": axis, "principles": {axis: "h"}} for axis in AXES},
    }
    (folder / MANIFEST_JSON).write_text(json.dumps(manifest), encoding="utf-8")
    answers, judgements = [], []
    for one in held_out:
        asked = {"prompt_id": one.id, "tags": one.tags}
        for name, text in (("policy", words.text()), ("base", "the same answer in both runs")):
            answers.append(
                Answer(
                    **asked, policy=name, prompts=HELD_OUT, messages=one.messages, text=text, truncated=False,
                    model=names[name],
                )
            )  # fmt: skip
        for axis in AXES:
            said = [verdict(axis, words.rng)]
            judgements.append(
                Judgement(**asked, axis=axis, policy="policy", against="base", p=said[0].p, verdicts=said, judge="m")
            )
    judgements.sort(key=lambda row: AXES.index(row.axis))
    return write_rows(folder / ANSWERS, answers) + write_rows(folder / COMPARISONS, judgements)


if __name__ == "__main__":
    main()
