import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Revision
from cai.inference.chat_template import load_tokenizer
from cai.training import sft
from cai.training.settings import SFTConfig
from cai.training.stage import StageSpec
from tests.conftest import prompt, train_here


class Seen(Exception):
    """Raised in place of training, with the answers that would be learned."""


@pytest.fixture
def answers(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(answers, report) of an SFT stage, which ends before it trains."""
    import trl

    tokenizer = load_tokenizer(tiny_model)

    def trainer(train_dataset: Any, **_: Any) -> None:
        raise Seen([answer(row) for row in train_dataset])

    def answer(row: dict[str, list[int]]) -> str:
        learned = [token for token, own in zip(row["input_ids"], row["completion_mask"], strict=True) if own]
        return str(tokenizer.decode(learned)).removesuffix("<|end|>")

    monkeypatch.setattr(trl, "SFTTrainer", trainer)

    def run(data: Path, seed: int = 0, **settings: Any) -> tuple[list[str], dict[str, Any]]:
        events: list[dict[str, Any]] = []
        with pytest.raises(Seen) as caught:
            sft.train(StageSpec(stage(**settings), data, tiny_model, tmp_path / "sft", seed), events.append)
        return caught.value.args[0], events[0]

    return run


def stage(**settings: Any) -> SFTConfig:
    return SFTConfig.model_validate({"stage": "sft", "max_length": 100, **settings})


def revision(i: int, round: int, flags: list[str] | None = None, **more: Any) -> Revision:
    common: dict[str, Any] = {"principle_id": "x", "principle_hash": "h", "model": "m", "templates": "t", "seed": 0}
    texts = {"draft": "a", "before": "a", "critique": None, "revision": f"p{i} round {round}"}
    messages = prompt(f"p{i}").messages
    row = Revision(
        prompt_id=f"p{i}", messages=messages, tags=[], round=round, truncated=[], flags=flags or [], **texts, **common
    )
    return row.model_copy(update=more)


def revisions(path: Path, count: int = 6) -> Path:
    write_rows(path, [revision(i, 1) for i in range(count)])
    return path


def helpful(path: Path, count: int) -> Path:
    rows = [{"prompt": f"Ask {i}?", "completion": f"help {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_all_rounds_or_each_prompts_last_are_learned(tmp_path: Path, answers: Any) -> None:
    data = tmp_path / "revisions.jsonl"
    rows = [revision(0, 2), revision(0, 1), revision(1, 1), revision(2, 1), revision(2, 2, ["unchanged"])]
    write_rows(data, rows)
    assert answers(data)[0] == ["p0 round 2", "p0 round 1", "p1 round 1", "p2 round 1"]
    assert answers(data, rounds="last")[0] == ["p0 round 2", "p1 round 1"]  # as for pairs: an unfit last makes none


def test_a_share_of_the_examples_comes_from_the_mixed_file(tmp_path: Path, answers: Any) -> None:
    data, mix = revisions(tmp_path / "revisions.jsonl"), helpful(tmp_path / "helpful.jsonl", 50)
    learned, counts = answers(data, mix=str(mix), mix_share=0.4)
    drawn = learned[6:]
    assert counts == {"examples": 10, "too_long": [], "mixed": 4, "mix_share": 0.4}
    assert len(set(drawn)) == 4 and all(text.startswith("help ") for text in drawn)
    assert answers(data, mix=str(mix), mix_share=0.4)[0] == learned
    assert answers(data, seed=1, mix=str(mix), mix_share=0.4)[0] != learned
    assert answers(data, mix=str(mix))[1]["mixed"] == 2
    assert answers(data)[1] == {"examples": 6, "too_long": []}


def test_a_mixed_file_with_too_few_answers_gives_all_and_reports_the_share_reached(
    tmp_path: Path, answers: Any
) -> None:
    data, mix = revisions(tmp_path / "revisions.jsonl"), helpful(tmp_path / "helpful.jsonl", 3)
    long = {"id": "long", "prompt": "long " * 60, "completion": "x"}
    mix.write_text(mix.read_text() + json.dumps(long) + "\n")
    learned, counts = answers(data, mix=str(mix), mix_share=0.5)
    assert sorted(learned[6:]) == ["help 0", "help 1", "help 2"]
    assert counts == {"examples": 9, "too_long": ["long"], "mixed": 3, "mix_share": 3 / 9}


def test_a_mixed_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path, tiny_model: Path) -> None:
    data = revisions(tmp_path / "revisions.jsonl")
    with pytest.raises(CaiError, match=r"nowhere\.jsonl: no such file"):
        sft.train(StageSpec(stage(mix="nowhere.jsonl"), data, tiny_model, tmp_path / "sft"), lambda event: None)


@pytest.mark.slow
def test_a_file_of_completions_is_learned_in_place_of_revisions(tmp_path: Path, tiny_model: Path) -> None:
    data, events = helpful(tmp_path / "helpful.jsonl", 6), list[dict[str, Any]]()
    settings = stage(num_train_epochs=20, learning_rate=2e-2, lora_r=None)
    train_here(StageSpec(settings, data, tiny_model, tmp_path / "sft"), events.append)
    assert events[0] == {"examples": 6, "too_long": []}
    losses = [json.loads(line).get("loss") for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_a_resumed_training_writes_the_same_metrics(tmp_path: Path, tiny_model: Path) -> None:
    settings = stage(num_train_epochs=2, per_device_train_batch_size=2, save_steps=2)
    spec = StageSpec(settings, helpful(tmp_path / "helpful.jsonl", 6), tiny_model, tmp_path / "sft")
    train_here(spec)
    undisturbed = (tmp_path / "sft/metrics.jsonl").read_text()
    for path in ("checkpoints/checkpoint-6", "model"):
        shutil.rmtree(tmp_path / "sft" / path)
    assert (tmp_path / "sft/checkpoints/checkpoint-4").is_dir()
    train_here(spec)
    assert (tmp_path / "sft/metrics.jsonl").read_text() == undisturbed


def ordinary(path: Path, count: int = 8) -> Path:
    """Revisions of as many prompts, every other of which is an ordinary one."""
    tags = [["ordinary", "cooking"], ["adversarial"]]
    write_rows(path, [revision(i, 1, tags=tags[i % 2], draft=f"draft {i}") for i in range(count)])
    return path


def test_drafts_to_ordinary_prompts_are_learned_in_place_of_their_revisions(tmp_path: Path, answers: Any) -> None:
    data = ordinary(tmp_path / "revisions.jsonl")
    learned, counts = answers(data)
    assert counts == {"examples": 8, "too_long": [], "mixed": 2, "mix_share": 0.25}
    drafts, revised = learned[6:], learned[:6]
    assert set(drafts) <= {"draft 0", "draft 2", "draft 4", "draft 6"} and len(set(drafts)) == 2
    assert {int(text.split()[1]) for text in drafts} | {int(text[1]) for text in revised} == set(range(8))
    assert answers(data)[0] == learned and answers(data, seed=1)[0] != learned
    assert answers(data, mix=None)[1] == {"examples": 8, "too_long": []}
    assert answers(data, mix_tags=["adversarial"])[0][6:] != drafts
    assert answers(data, mix_share=0.9)[1] == {"examples": 8, "too_long": [], "mixed": 4, "mix_share": 0.5}


@pytest.mark.parametrize("unfit", [{"draft": " "}, {"truncated": ["draft"]}, {"draft": "on and on and " * 5}])
def test_drafts_that_are_no_example_are_not_mixed_in(tmp_path: Path, answers: Any, unfit: Any) -> None:
    data = tmp_path / "revisions.jsonl"
    write_rows(data, [revision(i, 1, tags=["ordinary"], **unfit) for i in range(4)])
    assert answers(data)[1] == {"examples": 4, "too_long": []}


def test_a_stage_never_learns_drafts_alone(tmp_path: Path, answers: Any) -> None:
    data = tmp_path / "revisions.jsonl"
    write_rows(data, [revision(0, round, tags=["ordinary"]) for round in (1, 2)])
    assert answers(data)[0] == ["p0 round 1", "p0 round 2"]


def test_whether_drafts_are_mixed_in_is_part_of_the_stages_identity(tmp_path: Path, tiny_model: Path) -> None:
    data = ordinary(tmp_path / "revisions.jsonl")
    manifests = [
        StageSpec(stage(mix=mix), data, tiny_model, tmp_path / "sft").claim().manifest for mix in ("drafts", None)
    ]
    assert manifests[0] != manifests[1]
