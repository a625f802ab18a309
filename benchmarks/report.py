"""How large the report of a run of 10,000 prompts is, and how long a browser takes to open it.

    python benchmarks/report.py [PROMPTS]

The run is made up: every prompt has a draft, two rounds of critique and revision, a second sample, a judged pair with
four verdicts and the pair of its revision, each text 95 words drawn by their frequency in this project's own documents.
It needs Chromium.

Reading the line of JSON: `seconds` is from opening the file to the table of examples, in headless Chromium, the median
of five; `mb` is the size of the file in 10^6 bytes; `examples` is how many it holds; `made_in` is what writing it took,
in seconds.
"""

import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import sync_playwright

from cai.data.jsonl import write_rows
from cai.data.records import Message, Preference, Prompt, Revision, Verdict
from cai.feedback.revise import revision_preference
from cai.report.run import read_run, run_report
from cai.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent
WORDS = 95  # about 128 tokens
PRINCIPLES = ("physical-safety", "lawful-conduct", "equal-treatment", "privacy")
HASH = "0123456789abcdef"


def speaker(seed: int) -> Callable[[int], str]:
    """Texts of a number of words, drawn as often as this project uses them."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("constitutions/*.yaml")]
    words = " ".join(path.read_text(encoding="utf-8") for path in documents).split()
    rng = random.Random(seed)
    return lambda count: " ".join(rng.choices(words, k=count))


def make_run(path: Path, prompts: int) -> RunFolder:
    folder, say, rng = RunFolder(path), speaker(0), random.Random(1)
    path.mkdir()
    asked = [
        Prompt(id=f"prompt-{n:05}", messages=[Message(role="user", content=say(20))], tags=[rng.choice(("a", "b"))])
        for n in range(prompts)
    ]
    revisions: list[Revision] = []
    pairs: list[Preference] = []
    for prompt in asked:
        answers = [say(WORDS) for _ in range(3)]
        rounds = [
            Revision(
                prompt_id=prompt.id, messages=prompt.messages, tags=prompt.tags, round=n, draft=answers[0],
                before=answers[n - 1], principle_id=rng.choice(PRINCIPLES), principle_hash=HASH, critique=say(WORDS),
                revision=answers[n], truncated=[], flags=[], model=HASH, templates=HASH, seed=0,
            )
            for n in (1, 2)
        ]  # fmt: skip
        verdicts = [
            Verdict(
                principle_id=p, principle_hash=HASH, p_forward=rng.random(), p_reverse=rng.random(), non_option_mass=0.5
            )
            for p in PRINCIPLES
        ]  # fmt: skip
        pair = revision_preference(rounds)  # a few texts of random words fail a filter
        judged = Preference(
            prompt_id=prompt.id, messages=prompt.messages, tags=prompt.tags, chosen=answers[0], rejected=say(WORDS),
            p=rng.random(), source="judge", verdicts=verdicts, model=HASH, judge=HASH, seeds=[0],
        )  # fmt: skip
        revisions += rounds
        pairs += [row for row in (pair, judged) if isinstance(row, Preference)]
    write_rows(folder.prompts_jsonl, asked)
    write_rows(folder.revisions_jsonl, revisions)
    write_rows(folder.preferences_jsonl, pairs)
    for file in (folder.constitution_yaml, folder.eval_constitution_yaml):
        shutil.copy(ROOT / "constitutions/harmless.yaml", file)
    constitution = {"name": "harmless", "fingerprint": HASH, "principles": {}}
    manifest = {
        "config": {"seed": 0, "model": "none", "templates": "none", "prompts": {"source": "none"}, "preferences": None},
        "constitution": constitution, "eval_constitution": constitution, "templates": HASH, "prompts": HASH,
        "held_out": [],
        "preferences": None, "train_files": {}, "model": HASH, "judge_models": [HASH], "versions": {},
    }  # fmt: skip
    folder.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def seconds_to_open(file: Path) -> tuple[float, int]:
    """From the start of the navigation to the table of examples; and how many it says there are."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("no chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        taken = []
        for _ in range(5):
            page = browser.new_page()
            page.goto(file.as_uri(), timeout=60_000)
            page.wait_for_selector("html[data-ready=yes]")
            taken.append(page.evaluate("performance.getEntriesByName('examples')[0].startTime / 1000"))
            matches = page.locator("#matches").inner_text()
            page.close()
        browser.close()
    return statistics.median(taken), int(matches.split(" of ")[1].split(" ")[0].replace(",", ""))


def main() -> None:
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_run(Path(temporary) / "run", prompts)
        begun = time.monotonic()
        file = Path(temporary) / "report.html"
        file.write_text(run_report(folder, read_run(folder)), encoding="utf-8")
        made_in = time.monotonic() - begun
        seconds, examples = seconds_to_open(file)
        mb = file.stat().st_size / 1e6
    print(
        json.dumps(
            {
                "benchmark": "report", "seconds": round(seconds, 2), "mb": round(mb, 1), "examples": examples,
                "made_in": round(made_in, 1),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
