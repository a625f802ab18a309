import json
import shutil
from pathlib import Path

from cai.data.jsonl import write_rows
from cai.data.records import Message, Prompt
from cai.runs.find import find_policy


def test_a_ppo_stage_has_its_samples_and_the_prompts_it_was_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    prompts = [Prompt(id=f"q{n}", messages=[Message(role="user", content=f"Question {n}?")]) for n in range(2)]
    write_rows(tmp_path / "prompts.jsonl", prompts)
    (tmp_path / "samples.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "stage.json").write_text(json.dumps({"data": str(tmp_path / "prompts.jsonl")}), encoding="utf-8")
    shutil.copytree(tiny_model, tmp_path / "model")
    policy = find_policy(str(tmp_path), tmp_path / "runs").policy
    assert (policy.samples, policy.folder) == (tmp_path / "samples.jsonl", tmp_path / "model")
    assert [(p.id, p.messages) for p in policy.training_prompts] == [(p.id, p.messages) for p in prompts]
    (tmp_path / "prompts.jsonl").unlink()
    assert list(find_policy(str(tmp_path), tmp_path / "runs").policy.training_prompts) == []


def test_a_policy_that_ppo_did_not_make_has_no_samples(tiny_model: Path) -> None:
    assert find_policy(str(tiny_model), tiny_model / "runs").policy.samples is None
