import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Message, Prompt, Sampled, Skipped
from cai.evaluation.overoptimization import read_samples
from cai.runs.find import find_policy
from cai.training.tokens import prompt_ids


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Path:
    """A PPO stage with three samples: two of known prompts, one of another."""
    prompts = [Prompt(id=f"q{n}", messages=[Message(role="user", content=f"Question {n}?")]) for n in range(3)]
    write_rows(tmp_path / "prompts.jsonl", prompts[:2])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lines = [
        {"step": 5 * n, "prompt": tokenizer.decode(prompt_ids(tokenizer, prompt.messages)), "score": n / 2, "kl": 0.1,
         "response": f" Answer {n}.<|end|>", "tokens": 3}
        for n, prompt in enumerate(prompts)
    ]  # fmt: skip
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "stage.json").write_text(json.dumps({"data": str(tmp_path / "prompts.jsonl")}), encoding="utf-8")
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path


def samples_of(stage: Path) -> tuple[list[Sampled], list[Skipped]]:
    policy = find_policy(str(stage), stage / "runs").policy
    assert policy.samples is not None
    return read_samples(policy.samples, policy.folder, policy.training_prompts)


def test_samples_get_back_their_prompts_and_lose_the_token_that_ended_them(trained: Path) -> None:
    samples, skipped = samples_of(trained)
    assert [(s.step, s.prompt_id, s.text, s.score, s.p) for s in samples] == [
        (0, "q0", "Answer 0.", 0.0, None),
        (5, "q1", "Answer 1.", 0.5, None),
    ]
    assert samples[1].messages == [Message(role="user", content="Question 1?")]
    assert [(row.prompt_id, row.failed) for row in skipped] == [("update 10", False)]


def test_without_the_file_of_its_prompts_every_sample_is_skipped(trained: Path) -> None:
    (trained / "prompts.jsonl").unlink()
    samples, skipped = samples_of(trained)
    assert (samples, len(skipped)) == ([], 3)


def test_a_policy_that_ppo_did_not_make_has_no_samples(tiny_model: Path) -> None:
    assert find_policy(str(tiny_model), tiny_model / "runs").policy.samples is None


def test_a_damaged_file_of_samples_is_an_error_with_its_line(trained: Path) -> None:
    path = trained / "samples.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 3}\n', encoding="utf-8")
    with pytest.raises(CaiError, match=r"samples\.jsonl:4: not a sample of PPO: 'prompt'"):
        samples_of(trained)
