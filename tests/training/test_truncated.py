"""An answer that ran into its limit is never learned as one that ends there."""

from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.prompts import read_completions
from cai.data.records import Demonstration, Preference
from cai.inference.chat_template import load_tokenizer
from cai.training.reward import pairs_that_fit
from cai.training.sft import fit_revisions
from cai.training.stage import StageSpec, convert_data
from cai.training.tokens import end_of_turn
from cai.training.trl_stage import hard_pairs
from tests.conftest import prompt
from tests.training.policies import pair
from tests.training.test_sft import revision
from tests.training.test_text_tokens import STAGES, sequences, trainer

__all__ = ["trainer"]  # a fixture


def write(stage: str, path: Path, truncated: list[bool]) -> Path:
    """Rows of which some have a truncated answer: the chosen one and the rejected one in turn."""
    rows: list[Demonstration | Preference] = []
    for i, cut in enumerate(truncated):
        if stage == "sft":
            messages = prompt("p", f"question {i}").messages
            rows.append(Demonstration(prompt_id=f"p{i}", messages=messages, completion="yes", truncated=cut))
        else:
            sides = [("chosen", "rejected")[i % 2]] if cut else []
            rows.append(pair(i, "yes", "no, not").model_copy(update={"truncated": sides}))
    write_rows(path, rows)
    return path


def started(stage: str, folder: Path, model: Path, cut: list[bool], **options: Any) -> list[dict[str, Any]]:
    module, settings = STAGES[stage]
    events: list[dict[str, Any]] = []
    config = settings.model_copy(update=options)
    module.train(StageSpec(config, write(stage, folder / "rows.jsonl", cut), model, folder), events.append)
    return events


@pytest.mark.parametrize("stage", STAGES)
def test_rows_with_a_truncated_answer_are_skipped_and_counted(
    stage: str, tmp_path: Path, tiny_model: Path, trainer: list[Any]
) -> None:
    [event, *_] = started(stage, tmp_path, tiny_model, [False, True, False, True])
    end = end_of_turn(load_tokenizer(tiny_model))
    assert event["truncated"] == ["p1", "p3"]
    learned = [ids for row in trainer[-1].train_dataset for ids in sequences(row)]
    assert len(trainer[-1].train_dataset) == (4 if stage == "kto" else 2)
    assert all(ids[-1] == end for ids in learned)
    with pytest.raises(CaiError, match=r"all 2 rows have a truncated answer; .*--set truncated=open for cai train"):
        started(stage, tmp_path, tiny_model, [True, True])


@pytest.mark.parametrize("stage", STAGES)
def test_open_rows_are_learned_without_the_end_of_the_turn(
    stage: str, tmp_path: Path, tiny_model: Path, trainer: list[Any]
) -> None:
    [event, *_] = started(stage, tmp_path, tiny_model, [False, True, False, True], truncated="open")
    end = end_of_turn(load_tokenizer(tiny_model))
    assert (event["open"], "truncated" in event) == (2, False)
    rows = list(trainer[-1].train_dataset)
    name = {"sft": "input_ids", "kto": "completion_ids"}.get(stage)
    learned = [row[name] for row in rows] if name else [ids for row in rows for ids in sequences(row)]
    assert sum(ids[-1] != end for ids in learned) == 2


def test_a_reward_of_an_open_answer_is_read_at_its_last_token(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    end, rows = end_of_turn(tokenizer), [pair(0, "yes", "no").model_copy(update={"truncated": ["rejected"]})]
    rows += [pair(1, "yes", "no"), pair(2, "yes", " ").model_copy(update={"truncated": ["rejected"]})]
    [kept], unfit = pairs_that_fit(tokenizer, rows, 100)
    assert (kept.row.prompt_id, unfit.truncated) == ("p1", ["p0", "p2"])
    (first, _), unfit = pairs_that_fit(tokenizer, rows, 100, "open")
    assert unfit.truncated == ["p2"]  # there is nothing to read
    assert (first.chosen[-1], tokenizer.decode(first.rejected).endswith("\nno")) == (end, True)


def test_a_flag_follows_its_answer_where_the_label_turns_the_pair() -> None:
    turned = pair(0, "worse", "better", p=0.2).model_copy(update={"truncated": ["chosen"]})
    [row], _ = hard_pairs([turned, pair(1, "better", "worse")][:1], "kto")
    assert (row.chosen, row.rejected, row.truncated) == ("better", "worse", ["rejected"])


def test_the_flag_is_kept_where_a_stage_converts_its_file(tmp_path: Path) -> None:
    for stage in ("sft", "dpo"):
        settings, source = STAGES[stage][1], write(stage, tmp_path / f"{stage}.jsonl", [False, True])
        convert_data(settings, source, tmp_path / "rows.jsonl")
        assert (tmp_path / "rows.jsonl").read_text() == source.read_text()


def test_a_revision_carries_whether_it_ran_into_its_limit_and_a_foreign_row_is_finished(tmp_path: Path) -> None:
    rows = [revision(0, 1), revision(1, 1).model_copy(update={"truncated": ["draft", "revision"]})]
    assert [row.truncated for row in fit_revisions(rows, "all")] == [False, True]
    (tmp_path / "foreign.jsonl").write_text(
        '{"prompt": "a?", "completion": "b"}\n{"prompt": "c?", "completion": "d"}\n'
    )
    assert [row.truncated for row in read_completions(tmp_path / "foreign.jsonl")[0]] == [False, False]
