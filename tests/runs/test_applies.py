"""Runs whose principles apply to some prompts only."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.constitution.principles import Constitution, Principle, constitution_yaml
from cai.data.jsonl import read_rows, write_text
from cai.data.records import Applicability
from cai.inference.engine import Choose
from cai.inference.reporter import Reporter
from cai.runs.dry_run import dry_run
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.trust import run_trust
from cai.runs.verify import verify_run
from tests.conftest import SIXTEEN, scripted, write_workspace

QUESTION = "Does the message ask about an even number?"
SETTINGS = "revise: {rounds: 2}\njudge: {samples: 2, principles: 2}\n"


def principle(id: str, **where: object) -> Principle:
    texts = {"critique": f"What is not {id}?", "revision": f"Make it {id}.", "judge": f"Which answer is more {id}?"}
    return Principle.model_validate({"id": id, **texts, **({"applies_to": where} if where else {})})


def weigh(request: Choose) -> tuple[float, ...]:
    """Yes to the question about even numbers."""
    text = request.messages[-2]["content"]
    number = re.search(r"Question number (\d+)", text)
    if QUESTION in text:
        return (0.9, 0.1) if number and int(number[1]) % 2 == 0 else (0.1, 0.9)
    return (0.6, 0.3)


def workspace(folder: Path, model: Path, *principles: Principle) -> Path:
    run_file = write_workspace(folder, model, extra=SETTINGS)
    write_text(folder / "mine.yaml", constitution_yaml(Constitution(name="mine", principles=list(principles))))
    text = run_file.read_text(encoding="utf-8")
    run_file.write_text(text.replace(str(SIXTEEN), str(folder / "mine.yaml")), encoding="utf-8")
    return run_file


def run(run_file: Path, reporter: Reporter | None = None) -> RunFolder:
    plan = make_plan(run_file, [], None, run_file.parent / "runs")
    [folder] = execute(plan, reporter or Reporter(Console(quiet=True)), open_engine=scripted(weigh=weigh))
    return folder


@pytest.fixture
def mixed(tmp_path: Path, model_folder: Path) -> Path:
    """Two principles for prompts with even numbers, and one for a tag that nobody has."""
    return workspace(
        tmp_path,
        model_folder,
        principle("even", question=QUESTION),
        principle("calm", question=QUESTION, tags=["t"]),
        principle("rare", tags=["absent"]),
    )


def test_a_run_samples_among_the_principles_that_apply_and_counts_the_other_prompts(mixed: Path) -> None:
    folder = run(mixed)
    even = {p.id for p in folder.prompts() if int(p.id[1:]) % 2 == 0} - set(folder.manifest()["held_out"])
    odd = {p.id for p in folder.prompts()} - even - set(folder.manifest()["held_out"])
    assert even and odd
    assert {row.prompt_id for row in folder.revisions()} == even
    assert {row.principle_id for row in folder.revisions()} <= {"even", "calm"}
    assert {v.principle_id for row in folder.preferences() for v in row.verdicts} == {"even", "calm"}
    assert {row.prompt_id for row in folder.skipped() if row.reason == "no principle applies to the prompt"} == odd
    rows = read_rows(folder.applicability_jsonl, Applicability)
    assert {row.prompt_id for row in rows if row.p >= 0.5} == even and len(rows) == len(even | odd)
    summary = folder.summary()
    assert summary is not None
    assert summary["principles"] == {
        "questions": {QUESTION: {"prompts": len(even | odd), "yes": len(even)}}, "count": 3, "never_sampled": ["rare"],
        "contradicting": [],
    }  # fmt: skip
    assert dict(run_trust(summary))["principles"].endswith("never sampled: rare")


def test_a_dry_run_prices_the_questions_and_warns_of_tags(mixed: Path) -> None:
    plan = make_plan(mixed, [], None, mixed.parent / "runs")
    assert {line.step: line.cache_misses for line in dry_run(plan).lines}["applies"] == 6
    result = CliRunner().invoke(app, ["run", str(mixed), "--dry-run", "--runs", str(mixed.parent / "runs")])
    warning = "warning: principle 'rare': applies_to.tags: no training prompt has 'absent'"
    assert warning in " ".join(result.output.split())
    folder = run(mixed)
    assert warning in folder.log.read_text(encoding="utf-8")
    assert {line.step: line.cache_misses for line in dry_run(plan).lines}["applies"] == 0


def test_a_run_of_which_no_principle_can_apply_does_not_start(tmp_path: Path, model_folder: Path) -> None:
    run_file = workspace(tmp_path, model_folder, principle("a", tags=["x"]), principle("b", tags=["y", "x"]))
    expected = r"constitution: no principle applies to any prompt: .* that applies_to names: x, y$"
    with pytest.raises(CaiError, match=expected):
        make_plan(run_file, [], None, tmp_path / "runs")


def test_verify_draws_the_principles_again_and_sees_an_answer_that_was_changed(mixed: Path) -> None:
    folder = run(mixed)
    assert {check.part: check.state for check in verify_run(folder)}["sampled principles"] == "matches"
    rows = [row.model_copy(update={"p": 1 - row.p}) for row in folder.applicability()]
    write_text(folder.applicability_jsonl, "".join(row.model_dump_json() + "\n" for row in rows))
    differ = {check.part for check in verify_run(folder) if check.state == "differs"}
    assert {"sampled principles", "applicability.jsonl"} <= differ
    write_text(folder.applicability_jsonl, "")
    [check] = [check for check in verify_run(folder) if check.part == "sampled principles"]
    assert check.state == "differs" and "applicability.jsonl lacks" in check.note


def test_another_place_to_apply_is_another_run_which_names_the_principle(mixed: Path) -> None:
    run(mixed)
    edited = [principle("even"), principle("calm", question=QUESTION, tags=["t"]), principle("rare", tags=["absent"])]
    write_text(mixed.parent / "mine.yaml", constitution_yaml(Constitution(name="mine", principles=edited)))
    with pytest.raises(CaiError, match="principle even: applies_to: "):
        run(mixed)


def test_an_evaluation_skips_the_prompts_that_no_principle_of_its_constitution_applies_to(
    tmp_path: Path, model_folder: Path
) -> None:
    run_file = workspace(tmp_path, model_folder, principle("all"))
    odd = Constitution(name="odd", principles=[principle("even", question=QUESTION)])
    write_text(tmp_path / "eval.yaml", constitution_yaml(odd))
    other = tmp_path / "policy"
    other.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (other / name).write_text('{"other": 1}', encoding="utf-8")
    from cai.evaluation.evaluation_plan import Policy
    from cai.evaluation.policy import PolicyEvaluation
    from cai.inference.cache import Cache
    from cai.inference.scheduler import Scheduler
    from cai.runs.evaluate import plan_of_run

    plan = make_plan(run_file, [f"evaluate.constitution={tmp_path / 'eval.yaml'}"], None, tmp_path / "runs")
    cache = Cache(tmp_path / "cache.sqlite")
    opened = scripted(answer=lambda request: f"answer {request.seed} {len(opening)}", weigh=weigh)
    opening: list[str] = []

    def open_engine(*arguments: object) -> object:
        opening.append("one more")
        return opened(*arguments)  # type: ignore[arg-type]

    scheduler = Scheduler(plan.config.engine.shared, cache, None, open_engine, plan.own_settings)  # type: ignore[arg-type]
    evaluation = PolicyEvaluation(plan_of_run(plan, Policy("trained", other)), scheduler)
    import asyncio

    asyncio.run(evaluation.run())
    cache.close()
    even = {p.id for p in plan.held_out if int(p.id[1:]) % 2 == 0}
    rest = {p.id for p in plan.held_out} - even
    assert {row.prompt_id for row in evaluation.judgements if row.axis == "overall"} == even
    assert {row.prompt_id for row in evaluation.judgements if row.axis == "safe"} == even | rest
    assert {(row.prompt_id, row.reason) for row in evaluation.skipped} == {
        (i, "no principle applies to the prompt") for i in rest
    }


def test_labels_of_a_file_skip_the_rows_that_no_principle_applies_to(tmp_path: Path, model_folder: Path) -> None:
    import cai

    rows = [{"prompt": f"Question number {i}?", "chosen": "yes", "rejected": "no"} for i in range(4)]
    labels = cai.judge(
        rows,
        Constitution(name="c", principles=[principle("even", question=QUESTION)]),
        model=model_folder,
        runs=tmp_path / "runs",
        open_engine=scripted(weigh=weigh),
    )
    assert [pair.messages[0]["content"] for pair in labels] == ["Question number 0?", "Question number 2?"]
    assert [row.reason for row in labels.skipped] == ["no principle applies to the prompt"] * 2


def test_revisions_of_a_notebook_follow_the_principles_that_apply(tmp_path: Path, model_folder: Path) -> None:
    import cai

    rows = cai.revise(
        [{"prompt": f"Question number {i}?"} for i in range(4)],
        Constitution(name="c", principles=[principle("even", question=QUESTION)]),
        model=model_folder,
        runs=tmp_path / "runs",
        open_engine=scripted(weigh=weigh),
        rounds=1,
    )
    assert [json.loads(row.model_dump_json())["messages"][0]["content"] for row in rows] == [
        "Question number 0?", "Question number 2?",
    ]  # fmt: skip
    assert [row.reason for row in rows.skipped] == ["no principle applies to the prompt"] * 2
