import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from cai.data.files import table_writer
from cai.data.jsonl import read_rows, write_rows
from cai.data.preferences import read_preferences
from cai.data.records import BeforeAfter, Message, Preference, Revision, Skipped
from cai.inference.reporter import Reporter
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.publish import alpaca_files, annotated_document, table
from tests.before_after import write_before_after
from tests.conftest import scripted, write_workspace


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> RunFolder:
    """A run of 6 prompts, one of whose revisions is found to be unfit."""
    plan = make_plan(write_workspace(tmp_path, model_folder), ["revise.label=certain"], None, tmp_path / "runs")
    execute(plan, Reporter(Console(quiet=True)), False, scripted())
    rows = plan.folder.revisions()
    write_rows(plan.folder.revisions_jsonl, [rows[0].model_copy(update={"flags": ["empty"]}), *rows[1:]])
    return plan.folder


def test_a_round_is_written_with_the_requests_the_model_got(run: RunFolder) -> None:
    lost = Counter[str]()
    unfit, *made = table(run, "cai-conversation", lost)[1]
    assert isinstance(unfit, Skipped)
    assert (unfit.reason, unfit.stage) == ("revision empty", "round 1")
    assert len(made) == 11
    revision, row = run.revisions()[1], made[0]
    assert isinstance(row, dict)
    principle = next(p for p in run.constitution().principles if p.id == revision.principle_id)
    assert row["critic_prompt"].startswith(principle.critique)
    assert row["revision_prompt"].startswith(principle.revision)
    assert revision.messages[-1]["content"] in row["revision_prompt"]
    assert (row["init_prompt"], row["init_response"]) == (revision.messages[-1]["content"], revision.before)
    assert (row["critic_response"], row["revision_response"]) == (revision.critique, revision.revision)
    assert row["chosen"] == row["messages"] == [*revision.messages, {"role": "assistant", "content": revision.revision}]
    assert row["rejected"][-1]["content"] == revision.before
    assert lost == {"ids": 11, "verdicts and principles": 11, "tags": 11}


def test_the_rounds_of_a_run_are_read_as_preferences(run: RunFolder, tmp_path: Path) -> None:
    row, made = table(run, "cai-conversation", Counter())
    with table_writer(tmp_path / "rounds.parquet", row) as write:
        for item in made:
            if not isinstance(item, Skipped):
                write(item)
    pairs, _ = read_preferences(tmp_path / "rounds.parquet")
    assert [(p.chosen, p.rejected) for p in pairs] == [(r.revision, r.before) for r in run.revisions()[1:]]


def test_answers_to_learn_are_the_revisions_that_are_fit(run: RunFolder) -> None:
    unfit, *answers = table(run, "openai-chat", Counter())[1]
    assert isinstance(unfit, Skipped)
    assert [row["messages"][-1]["content"] for row in answers if isinstance(row, dict)] == [
        row.revision for row in run.revisions()[1:]
    ]


def test_preferences_of_a_run_and_of_its_file_are_written_alike(run: RunFolder) -> None:
    of_run, of_file = (list(table(source, "kto", Counter())[1]) for source in (run, run.preferences_jsonl))
    assert of_run == of_file
    undecided = sum(pair.p == 0.5 for pair in run.preferences())
    assert (len(of_run), undecided) == (2 * (12 - undecided) + undecided, 6)


def test_annotated_pairs_name_the_principles_of_the_run(run: RunFolder) -> None:
    lost = Counter[str]()
    document, skipped = annotated_document(run, lost)
    assert not lost.keys() & {"soft labels", "ids", "tags", "verdicts and principles"}
    questions = {p.id: p.judge for p in run.constitution().principles}
    named = {i: a["description"] for i, a in document["annotators"].items() if a["type"] == "principle"}
    assert named == {i: questions[i] for i in named}
    assert len(named) > 4
    assert len(document["comparisons"]) == len(run.preferences())
    assert skipped == []
    assert document["metadata"]["dataset_name"] == "test"


def test_an_evaluation_is_written_as_outputs_and_soft_annotations(run: RunFolder, tmp_path: Path) -> None:
    def compared(id: str, p: float, *said: str) -> BeforeAfter:
        turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(said)]  # type: ignore[typeddict-item]
        return BeforeAfter(
            prompt_id=id, messages=turns, tags=["t"], before="old", after="new", truncated=[], p=p, verdicts=[],
            before_model="b", after_model="a", judge="j",
        )  # fmt: skip

    write_before_after(run.eval, [compared("x", 0.75, "Why?"), compared("y", 0.5, "Hi.", "Hello.", "Why?")])
    files, skipped = alpaca_files(run)
    assert [(row.prompt_id, row.reason[:40]) for row in skipped] == [("y", "AlpacaEval takes a single instruction, a")]
    model = run.manifest()["config"]["model"]
    assert files["model_outputs.json"] == [
        {"instruction": "Why?", "dataset": "t", "output": "new", "generator": "test"}
    ]
    assert files["reference_outputs.json"] == [
        {"instruction": "Why?", "dataset": "t", "output": "old", "generator": model}
    ]
    assert files["annotations.json"][0]["preference"] == 1.75
    (tmp_path / "annotations.json").write_text(json.dumps(files["annotations.json"]))
    [pair], _ = read_preferences(tmp_path / "annotations.json")
    assert (pair.chosen, pair.rejected, pair.p, pair.judge, pair.tags) == (
        "new",
        "old",
        0.75,
        "eval judge of test",
        ["t"],
    )


def test_a_run_without_critiques_has_none_to_write(run: RunFolder) -> None:
    rows = [row.model_copy(update={"critique": None}) for row in run.revisions()]
    write_rows(run.revisions_jsonl, rows)
    _, first, *_ = table(run, "cai-conversation", Counter())[1]
    assert isinstance(first, dict)
    assert (first["critic_prompt"], first["critic_response"]) == (None, None)
    assert [r.critique for r in read_rows(run.revisions_jsonl, Revision)] == [None] * 12


def test_the_rows_of_a_run_as_they_are_lose_nothing(run: RunFolder, tmp_path: Path) -> None:
    lost = Counter[str]()
    row, made = table(run, "cai", lost)
    with table_writer(tmp_path / "pairs.parquet", row) as write:
        for item in made:
            write(item)
    assert read_preferences(tmp_path / "pairs.parquet") == (run.preferences(), [])
    assert (row, lost) == (Preference, {})
