"""Run folders made by hand: every text of every row is what a test wants it to be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai.data.jsonl import write_rows
from cai.data.records import BeforeAfter, Message, Messages, Preference, Prompt, Ranking, Revision, Skipped, Verdict
from cai.runs.folder import RunFolder
from tests.before_after import write_before_after

HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'></script></textarea><!-- {{ 7*7 }} {% x %} "
    '<a href="javascript:alert(1)">link</a> &amp; ]]> \u202eright to left\u2066 zero\u200bwidth \x1b[31m \x08 \u2028 end'
)


def write_run(
    path: Path,
    prompts: int = 6,
    say: Callable[[str, int], str] = lambda what, number: f"the {what} of number {number}",
    ids: Callable[[int], str] = lambda number: f"p{number:02}",
    principle_id: str = "good-for-people",
) -> RunFolder:
    """A finished run of one round, the last third held out; `say(what, number)` is the text of a field of a row."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    held_out = [n for n in range(prompts) if n >= prompts * 2 // 3]

    def messages(n: int) -> Messages:
        return [Message(role="user", content=say("prompt", n))]

    def tags(n: int) -> list[str]:
        return [say("tag", n % 2)]

    def verdict(n: int) -> Verdict:
        return Verdict(
            principle_id=principle_id, principle_hash=say("hash", n), p_forward=0.9, p_reverse=0.3 + n % 7 / 10,
            non_option_mass=0.1, cot=[say("thought", n)], judge=say("judge", n),
        )  # fmt: skip

    def revision(n: int) -> Revision:
        return Revision(
            prompt_id=ids(n), messages=messages(n), tags=tags(n), round=1, draft=say("draft", n), before=say("draft", n),
            principle_id=principle_id, principle_hash=say("hash", n), critique=say("critique", n),
            revision=say("revision", n), truncated=["draft"] if n % 3 == 0 else [],
            flags=["copied_critique"] if n % 2 else [], model=say("model", n), templates=say("templates", n), seed=n,
        )  # fmt: skip

    def preference(n: int) -> Preference:
        return Preference(
            prompt_id=ids(n), messages=messages(n), tags=tags(n), chosen=say("chosen", n), rejected=say("rejected", n),
            p=(n % 10 + 0.5) / 10, source="judge", verdicts=[verdict(n)], principle_ids=[say("principle", n)],
            model=say("model", n), judge=say("judge", n), seeds=[n],
        )  # fmt: skip

    def comparison(n: int) -> BeforeAfter:
        return BeforeAfter(
            prompt_id=ids(n), messages=messages(n), tags=tags(n), before=say("before", n), after=say("after", n),
            truncated=["after"], p=(n % 10 + 0.5) / 10, verdicts=[verdict(n)], before_model=say("model", n),
            after_model=say("model", n), judge=say("judge", n),
        )  # fmt: skip

    training = [n for n in range(prompts) if n not in held_out]
    write_rows(
        folder.prompts_jsonl, (Prompt(id=ids(n), messages=messages(n), tags=tags(n)) for n in [*training, *held_out])
    )
    write_rows(folder.revisions_jsonl, map(revision, training))
    write_rows(folder.preferences_jsonl, map(preference, training))
    write_rows(
        folder.rankings_jsonl,
        [
            Ranking(
                prompt_id=ids(0), messages=messages(0), responses=[say("best", 0), say("worst", 0)],
                strengths=[1.0, -1.0], model=say("model", 0),
            )
        ],
    )  # fmt: skip
    write_before_after(folder.eval, map(comparison, held_out))
    write_rows(folder.skipped_jsonl, [Skipped(prompt_id=ids(1), stage=say("stage", 1), reason=say("reason", 1))])
    principle = {"id": "good-for-people", **{k: say(k, 0) for k in ("critique", "revision", "judge", "notes")}}
    constitution = {"name": say("name", 0), "principles": [principle | {"tags": [say("tag", 0)]}]}
    for file in (folder.constitution_yaml, folder.eval_constitution_yaml):
        file.write_text(json.dumps(constitution), encoding="utf-8")  # which is YAML too
    folder.run_yaml.write_text(f"# {json.dumps(say('run file', 0))}\nname: x\n", encoding="utf-8")
    folder.templates.mkdir()
    (folder.templates / "judge.jinja").write_text(say("template", 0), encoding="utf-8")
    stage = folder.train / "1-dpo"
    stage.mkdir(parents=True)
    updates = [
        {"step": n + 1, "loss": 0.7 - n / 100, "rewards/margins": n / 10, say("metric", n): 1} for n in range(12)
    ]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(u) + "\n" for u in updates), encoding="utf-8")
    (stage / "stage.json").write_text(json.dumps({"settings": {"stage": "dpo", "loss": say("loss", 0)}}))
    folder.manifest_json.write_text(json.dumps(_lock(say, [ids(n) for n in held_out])), encoding="utf-8")
    from cai.runs.metrics import summarise

    folder.summary_json.write_text(json.dumps(summarise(folder) | _costs()), encoding="utf-8")
    return folder


def _costs() -> dict[str, Any]:
    return {
        "calls": {"cache_misses": 3, "cache_hits": 4, "tokens": 5},
        "seconds": {"feedback": 7.0},
        "in_all": {"sessions": 1, "cache_misses": 3, "tokens": 5, "seconds": {"feedback": 7.0}},
    }


def _lock(say: Callable[[str, int], str], held_out: list[str]) -> dict[str, Any]:
    constitution = {"name": say("name", 0), "fingerprint": say("hash", 0), "principles": {}}
    return {
        "config": {
            "seed": 0, "model": say("model", 0), "constitution": say("file", 0), "templates": say("file", 0),
            "prompts": {"source": say("file", 0)}, "preferences": None, "revise": {"critique": True}, "train": [{"stage": "dpo"}],
        },
        "constitution": constitution, "eval_constitution": constitution, "templates": say("hash", 1), "prompts": say("hash", 2),
        "held_out": held_out, "judge_gate": None, "preferences": None, "train_files": {say("file", 1): say("hash", 3)},
        "model": say("hash", 4), "judge_models": [say("hash", 5)], "versions": {say("package", 0): say("version", 0)},
    }  # fmt: skip
