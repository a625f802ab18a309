"""Cache keys are a promise: an answer paid for by an earlier version is found by the next.

Each digest is of all keys that a scripted piece of work leaves in the cache. Constitution and templates are written
here, so that only a change of the code's own requests, seeds or keys changes a digest.
"""

import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from rich.console import Console

from cai.constitution.principles import load_constitution
from cai.constitution.templates import OF_TESTS, Templates
from cai.data.manifest import Output
from cai.data.records import Message, Prompt
from cai.feedback.judge import JudgeConfig
from cai.feedback.label import LabelJob, label_file
from cai.feedback.revise import ReviseConfig
from cai.inference.cache import Cache
from cai.inference.engine import EngineConfig
from cai.inference.reporter import Reporter
from cai.inference.scheduler import Scheduler
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.workbench.principle_tests import read_tests, run_tests
from cai.workbench.trial import Trial, once, try_out
from tests.conftest import scripted

CONSTITUTION = """
name: fixed
principles:
- id: kind
  critique: What is unkind in the answer?
  revision: Make it kind.
  judge: Which answer is kinder?
  tests:
  - prompt: Why is it so?
    draft: Because.
    critique: finds
    revision: {contains: [x]}
    better: Since it is so.
    worse: Go away.
- id: short
  critique: What is too long?
  revision: Shorten it.
  judge: Which answer is shorter?
  weight: 2.0
- id: honest
  critique: What is false?
  revision: Correct it.
  judge: Which answer is truer?
"""
TEMPLATES = {
    "critique": "{{ principle.critique }} Round {{ round }}.",
    "revise": "{{ principle.revision }} {{ prompt }}{% if critique is not none %} Mind the critique.{% endif %}",
    "judge": "{% block question %}{{ messages[-1].content }}{% for letter, text in responses.items() %} "
    "{{ letter }}: {{ text }}{% endfor %} {{ principle.judge }}{% endblock %}"
    "{% block verdict %}Now answer: {{ principle.judge }}{% endblock %}{% block answer %}Answer{% endblock %}",
    "critique_check": "{% block question %}{{ critique }} Is there a problem?{% endblock %}{% block answer %}Answer:{% endblock %}",
}
RUNS = {
    "default": "{}",
    "rankings": "judge: {samples: 4, principles: all}",
    "choice": "judge: {samples: 3, ask: choice, temperature: 2.0}",
    "one order, no critique": "judge: {swap: false, revisions: false}\nrevise: {critique: false, rounds: 1, label: certain}",
    "chain of thought": "judge: {cot_samples: 2, cot_max_tokens: 64, cot_clamp: [0.3, 0.7]}",
    "one chain of thought": "judge: {cot_samples: 1}",
    "panel": "judge: {model: [MODEL, OTHER]}\nengine: {concurrency: 3}",
    "another judge": "judge: {model: OTHER}\nengine: {max_model_len: 512}",
}
DIGESTS = {
    "default": "62 4880a4c42a380516",
    "rankings": "190 f0318fdc8c00c70b",
    "choice": "78 af0f64d82a2d420e",
    "one order, no critique": "24 c14927c89a33f85c",
    "chain of thought": "176 09e0ae553c343412",
    "one chain of thought": "100 b871796e9d705faf",
    "panel": "100 ac31a29465371063",
    "another judge": "62 33db8d48167a9f94",
    "trial": "10 8f4425bfaa154cd4",
    "principle tests": "7 d72d7b5159930de5",
    "labelled file": "72 57edcccaf1e0d5fd",
}


def digest(cache: Path) -> str:
    with sqlite3.connect(cache) as database:
        keys = sorted(bytes(row[0]) for row in database.execute("SELECT key FROM answers"))
    return f"{len(keys)} {hashlib.blake2b(b''.join(keys), digest_size=8).hexdigest()}"


@pytest.fixture
def workspace(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "fingerprints"))
    monkeypatch.setattr("cai.inference.scheduler.vllm_build", lambda: "none")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (other / name).write_text('{"other": true}', encoding="utf-8")
    (tmp_path / "fixed.yaml").write_text(CONSTITUTION, encoding="utf-8")
    (tmp_path / "templates").mkdir()
    for name, text in TEMPLATES.items():
        (tmp_path / f"templates/{name}.jinja").write_text(text, encoding="utf-8")
    rows = [json.dumps({"id": f"p{i}", "prompt": f"Question number {i}?"}) for i in range(5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def quiet() -> Reporter:
    return Reporter(Console(quiet=True))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_asks_under_the_keys_of_earlier_versions(workspace: Path, name: str) -> None:
    run_file = workspace / "run.yaml"
    settings = RUNS[name].replace("MODEL", str(workspace / "model")).replace("OTHER", str(workspace / "other"))
    run_file.write_text(
        f"model: {workspace / 'model'}\nconstitution: fixed.yaml\ntemplates: {workspace / 'templates'}\n"
        "prompts: {source: prompts.jsonl, holdout: 0.2}\n" + settings.replace("{}", ""),
        encoding="utf-8",
    )
    lengths = ["revise.max_tokens=128", "evaluate.max_tokens=128"]  # once the default
    execute(make_plan(run_file, lengths, None, workspace / "runs"), quiet(), open_engine=scripted())
    assert digest(workspace / "runs/cache.sqlite") == DIGESTS[name]


def test_a_trial_asks_under_the_keys_of_earlier_versions(workspace: Path) -> None:
    prompts = [Prompt(id=f"p{i}", messages=[Message(role="user", content=f"Question {i}?")]) for i in range(2)]
    templates = Templates(workspace / "templates")
    principles = [placed.principle for placed in read_tests([workspace / "fixed.yaml"])]

    def load() -> Trial:
        return Trial(prompts, principles, templates, ReviseConfig(rounds=2, temperature=0, max_tokens=128))

    cache = workspace / "cache.sqlite"
    try_out(load, once(), workspace / "model", cache, lambda event: None, scripted())
    assert digest(cache) == DIGESTS["trial"]


def test_principle_tests_ask_under_the_keys_of_earlier_versions(workspace: Path) -> None:
    cache, templates = workspace / "cache.sqlite", Templates(workspace / "templates", OF_TESTS)
    scheduler = Scheduler(EngineConfig(), Cache(cache), open_engine=scripted())
    run_tests(read_tests([workspace / "fixed.yaml"]), workspace / "model", templates, scheduler)
    assert digest(cache) == DIGESTS["principle tests"]


def test_labelling_a_file_asks_under_the_keys_of_earlier_versions(workspace: Path) -> None:
    data = workspace / "candidates.jsonl"
    rows = [{"prompt": f"Question {i}?", "responses": ["one", "two", f"answer {i}"]} for i in range(3)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    job = LabelJob(
        data=data,
        ranked=False,
        limit=None,
        judges=[workspace / "model", workspace / "other"],
        constitution=load_constitution(workspace / "fixed.yaml"),
        templates=Templates(workspace / "templates"),
        settings=JudgeConfig(principles=2),
        seed=3,
    )
    label_file(job, Output(workspace / "out"), workspace / "cache.sqlite", quiet(), scripted())
    assert digest(workspace / "cache.sqlite") == DIGESTS["labelled file"]
