"""The settings of a chat template belong to one model: in a run, its training and its evaluation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Demonstration, Message
from cai.inference.chat import chat_ids, turn_end
from cai.inference.chat_template import ChatSettings, load_tokenizer
from cai.inference.engine import EngineConfig
from cai.inference.scheduler import engine_fingerprint
from cai.runs.evaluate import Options, plan_evaluation
from cai.runs.find import find_policy
from cai.runs.plan import Plan, make_plan, manifest, start_folder
from cai.runs.run_file import engine_settings, load_run_file
from cai.training.settings import SFTConfig
from cai.training.stage import StageSpec
from tests.conftest import prompt, train_here, write_workspace

SYSTEM = "engine: {system_prompt: Be brief.}\n"


def planned(folder: Path, model: Path, extra: str, *overrides: str) -> Plan:
    return make_plan(write_workspace(folder, model, extra=extra), list(overrides), None, folder / "runs")


def another(folder: Path, model: Path, name: str, without_template: bool = False) -> Path:
    copied = shutil.copytree(model, folder / name)
    (copied / "README.md").write_text(name)
    if without_template:
        (copied / "chat_template.jinja").unlink()
    return copied


def test_a_system_prompt_is_of_the_runs_own_model(tmp_path: Path, tiny_model: Path) -> None:
    judge = another(tmp_path, tiny_model, "judge")
    plan = planned(tmp_path, tiny_model, f"{SYSTEM}judge: {{model: {judge}}}\n")
    own = plan.own_settings[tiny_model]
    assert own.system_prompt == "Be brief." and judge not in plan.own_settings
    assert engine_fingerprint(tiny_model, own) != engine_fingerprint(tiny_model, own.shared)
    assert manifest(plan)["config"]["engine"] == {"system_prompt": "Be brief."}
    both = planned(tmp_path, tiny_model, f"{SYSTEM}judge: {{model: {judge}, engine: {{system_prompt: Judge.}}}}\n")
    assert both.own_settings[judge].system_prompt == "Judge."


def test_a_run_without_such_settings_is_what_it_was(tmp_path: Path, tiny_model: Path) -> None:
    plan = planned(tmp_path, tiny_model, "")
    assert plan.own_settings == {} and manifest(plan)["config"]["engine"] == {}


def test_a_base_model_needs_a_template_before_anything_loads(tmp_path: Path, tiny_model: Path) -> None:
    base = another(tmp_path, tiny_model, "base", without_template=True)
    with pytest.raises(CaiError, match=r"no chat template, as of a base model; set engine.chat_template to a file, or to a shipped one: chatml or human_assistant"):  # fmt: skip
        planned(tmp_path, base, "")
    plan = planned(tmp_path, base, "engine: {chat_template: human_assistant}\n")
    assert "Human: " in str(plan.config.engine.chat_template)
    with pytest.raises(CaiError, match=r"judge.engine.chat_template: .* ends an answer with no special token"):
        planned(tmp_path, tiny_model, f"judge: {{model: {base}, engine: {{chat_template: chatml}}}}\n")


def test_a_template_file_is_found_beside_the_run_file_and_counts_by_content(tmp_path: Path, tiny_model: Path) -> None:
    own = (tiny_model / "chat_template.jinja").read_text()
    (tmp_path / "mine.jinja").write_text(own)
    plan = planned(tmp_path, tiny_model, "engine: {chat_template: mine.jinja}\n")
    assert manifest(plan)["config"]["engine"] == {"chat_template": own}
    plan.folder.path.mkdir(parents=True)
    start_folder(plan, replace=False)
    assert load_run_file(plan.folder.run_yaml).engine.chat_template == str(tmp_path / "mine.jinja")
    (tmp_path / "mine.jinja").write_text("{{ '<|start|>' }}" + own)
    assert manifest(planned(tmp_path, tiny_model, "engine: {chat_template: mine.jinja}\n")) != manifest(plan)
    with pytest.raises(CaiError, match=r"run.yaml: engine.chat_template: 'other.jinja' not found"):
        planned(tmp_path, tiny_model, "engine: {chat_template: other.jinja}\n")


def test_no_file_is_read_for_the_settings_of_a_received_run(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{{ secret }}")
    received = EngineConfig(chat_template=str(tmp_path / "secret"))
    assert engine_settings([], received, Path("cai eval")).chat_template == str(tmp_path / "secret")
    assert (
        engine_settings([f"engine.chat_template={tmp_path}/secret"], EngineConfig(), Path("cai eval")).chat_template
        == "{{ secret }}"
    )


def test_settings_that_a_model_does_not_take_are_errors_of_their_section(tmp_path: Path, tiny_model: Path) -> None:
    judge = another(tmp_path, tiny_model, "judge")
    with pytest.raises(CaiError, match=r"judge.engine.chat_template_kwargs: .* no variable 'enable_thinking'"):
        planned(tmp_path, tiny_model, f"judge: {{model: {judge}, engine: {{chat_template_kwargs: {{enable_thinking: false}}}}}}\n")  # fmt: skip
    with pytest.raises(CaiError, match=r"engine.chat_template_kwargs.*found 'messages'"):
        planned(tmp_path, tiny_model, "engine: {chat_template_kwargs: {messages: 1}}\n")


def trained(folder: Path, model: Path, chat: ChatSettings | None) -> Path:
    """A `cai train sft` folder."""
    rows = [
        Demonstration(prompt_id=f"p{i}", messages=prompt(f"p{i}").messages, completion="Boil it.") for i in range(4)
    ]
    folder.mkdir()
    write_rows(folder / "rows.jsonl", rows)
    settings = SFTConfig(stage="sft", num_train_epochs=1, max_length=256, per_device_train_batch_size=4)
    spec = StageSpec(settings, folder / "rows.jsonl", model, folder, chat=chat)
    spec.write(folder / "stage.json")
    assert StageSpec.read(folder / "stage.json") == spec
    return train_here(spec)


def test_a_policy_is_trained_and_saved_with_the_settings_of_its_model(tmp_path: Path, tiny_model: Path) -> None:
    chat = ChatSettings(system_prompt="Be brief.")
    policy = trained(tmp_path / "a", tiny_model, chat)
    messages = prompt().messages
    system = [Message(role="system", content="Be brief."), *messages]
    assert chat_ids(load_tokenizer(policy), messages, True) == chat_ids(load_tokenizer(tiny_model), system, True)
    assert (
        GenerationConfig.from_pretrained(policy).eos_token_id
        == GenerationConfig.from_pretrained(tiny_model).eos_token_id
    )
    plain = StageSpec(SFTConfig(stage="sft"), tmp_path / "a/rows.jsonl", tiny_model, tmp_path / "b")
    assert "chat" not in plain.claim().manifest
    with_chat = StageSpec(SFTConfig(stage="sft"), tmp_path / "a/rows.jsonl", tiny_model, tmp_path / "b", chat=chat)
    assert with_chat.claim().manifest["chat"] == {"system_prompt": "Be brief."}


def test_a_trained_base_model_ends_its_answers_outside_cai_too(tmp_path: Path, tiny_model: Path) -> None:
    base = another(tmp_path, tiny_model, "base", without_template=True)
    ends_otherwise = template_of(tiny_model).replace("<|end|>", "<|start|>")
    policy = trained(tmp_path / "a", base, ChatSettings(chat_template=ends_otherwise))
    tokenizer = load_tokenizer(policy)
    assert turn_end(tokenizer) != tokenizer.eos_token_id
    assert turn_end(tokenizer) in GenerationConfig.from_pretrained(policy).eos_token_id


def template_of(model: Path) -> str:
    return (model / "chat_template.jinja").read_text()


def test_an_evaluation_asks_the_base_model_as_it_was_trained_from(tmp_path: Path, tiny_model: Path) -> None:
    trained(tmp_path / "a", tiny_model, ChatSettings(system_prompt="Be brief."))
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Why?"}) + "\n")
    found = find_policy(str(tmp_path / "a"), tmp_path / "runs")
    assert found.chat == ChatSettings(system_prompt="Be brief.")

    def evaluated(**more: Any) -> Any:
        options = Options(str(tmp_path / "a"), prompts=tmp_path / "prompts.jsonl", probes="none", **more)
        return plan_evaluation(options, tmp_path / "runs")

    plan = evaluated()
    assert plan.reference_engine.system_prompt == "Be brief." and plan.engine.system_prompt is None
    other = another(tmp_path, tiny_model, "other")
    assert evaluated(reference=str(other)).reference_engine.system_prompt is None
    said = evaluated(settings=["engine.system_prompt=Be kind."])
    assert said.reference_engine.system_prompt == said.engine.system_prompt == "Be kind."
