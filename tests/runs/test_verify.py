import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.inference import models
from cai.inference.engine import Choose
from cai.inference.reporter import Reporter
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.verify import reproducible, verify_run
from tests.conftest import scripted, write_workspace

THREE = "judge: {samples: 3, principles: 2, temperature: 1.5}\n"
DPO = "train:\n  - {stage: dpo, lora_r: 2, num_train_epochs: 1, learning_rate: 1.0e-3}\n"


def weigh(request: Choose) -> tuple[float, float]:
    return (0.2 + len(request.messages[0]["content"]) % 7 / 10, 0.1)


def execute_run(
    folder: Path, model: Path, extra: str = THREE, weigh: Callable[[Choose], tuple[float, float]] = weigh
) -> RunFolder:
    run_file = write_workspace(folder, model, extra=extra)
    plan = make_plan(run_file, [], None, folder / "runs")
    [run] = execute(plan, Reporter(Console(quiet=True)), open_engine=scripted(weigh=weigh))
    return run


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> RunFolder:
    return execute_run(tmp_path, model_folder)


def cai(run: RunFolder) -> Result:
    return CliRunner().invoke(app, ["verify", str(run.path)], env={"COLUMNS": "80"})


def differing(run: RunFolder) -> list[str]:
    return [check.part for check in verify_run(run) if check.state == "differs"]


def test_an_untouched_run_matches_in_every_part_on_80_columns(run: RunFolder) -> None:
    result = cai(run)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    checks = {check.part: check for check in verify_run(run)}
    assert {check.state for check in checks.values()} == {"matches"}
    assert {"constitution.yaml", "templates/", "prompts.jsonl", "base model", "revisions.jsonl", "summary.json"} <= set(
        checks
    )
    assert checks["labels (preferences.jsonl)"].note == "24 computed again"  # 18 of samples, 6 of revisions
    assert checks["strengths (rankings.jsonl)"].note == "18 computed again"


def test_a_run_whose_principles_vote_where_they_are_at_issue_matches_too(tmp_path: Path, model_folder: Path) -> None:
    def votes(request: Choose) -> tuple[float, float]:
        yes = len(request.messages[0]["content"]) % 5 < 3
        return ((0.8, 0.1) if yes else (0.1, 0.8)) if request.step == "verify" else weigh(request)

    extra = "judge: {samples: 3, principles: 2, verify: true}\n"
    run = execute_run(tmp_path, model_folder, extra, votes)
    rows = run.preferences()
    assert any(row.abstentions for row in rows) and any(not row.abstentions for row in rows)
    assert {check.state for check in verify_run(run)} == {"matches"}
    skipped = {row.reason for row in run.skipped()}
    assert "no principle tells the two answers apart" in skipped
    shown = CliRunner().invoke(app, ["show", str(run.path), "--stage", "preferences", "-n", "99"]).output
    assert "no vote  (P(at issue) = 0.1111)" in shown


def test_labels_that_came_with_the_input_are_not_judged_by_the_settings_of_the_run(
    tmp_path: Path, model_folder: Path
) -> None:
    (tmp_path / "earlier").mkdir()
    earlier = execute_run(tmp_path / "earlier", model_folder)  # with another temperature and other principles
    source = earlier.preferences_jsonl
    assert {row.source for row in earlier.preferences()} == {"judge", "revision"}
    extra = f"judge: {{samples: 3, principles: 1}}\nseed: 3\npreferences: {{source: {source}}}\n"
    run = execute_run(tmp_path, model_folder, extra)
    came = [row for row in run.preferences() if row.from_file]
    own = [row for row in run.preferences() if not row.from_file]
    assert len(came) == len(earlier.preferences()) and {row.source for row in came} == {"judge", "revision"}
    assert [check.part for check in verify_run(run) if check.state == "differs"] == []
    checks = {check.part: check for check in verify_run(run)}
    assert checks["labels (preferences.jsonl)"].note == f"{len(own)} computed again"
    summary = run.summary()
    assert summary is not None
    judged = [max(row.p, 1 - row.p) for row in own if row.source == "judge"]
    assert summary["metrics"]["label_p"]["mean"] == pytest.approx(sum(judged) / len(judged))


def test_a_run_that_revises_where_a_problem_is_found_counts_the_answers_that_stay(
    tmp_path: Path, model_folder: Path
) -> None:
    def check(request: Choose) -> tuple[float, float]:
        even = len(request.messages[0]["content"]) % 2 == 0
        return (0.8, 0.2) if request.step != "critique_check" or even else (0.2, 0.8)

    run_file = write_workspace(tmp_path, model_folder, extra="revise: {when: finds, rounds: 1}\n")
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    [run] = execute(plan, Reporter(Console(quiet=True)), open_engine=scripted(weigh=check))
    rows = run.revisions()
    stayed = [row.prompt_id for row in rows if row.stays]
    assert 0 < len(stayed) < len(rows) == 6
    assert [row.prompt_id for row in run.skipped() if row.reason == "found nothing to revise"] == stayed
    assert not {row.prompt_id for row in run.preferences() if row.source == "revision"} & set(stayed)
    summary = run.summary()
    assert summary and summary["metrics"]["stays"]["mean"] == len(stayed) / 6
    assert differing(run) == []


def replaced(name: str, old: str, new: str) -> Callable[[RunFolder], None]:
    def change(run: RunFolder) -> None:
        path = run.path / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def relabelled(run: RunFolder, source: str = "judge") -> None:
    """A label no verdict supports, with the hash of its file brought up to date."""
    from cai.data.jsonl import file_fingerprint

    rows = [json.loads(line) for line in run.preferences_jsonl.read_text().splitlines()]
    next(row for row in rows if row["source"] == source)["p"] = 0.99
    run.preferences_jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads(run.summary_json.read_text())
    summary["files"]["preferences.jsonl"] = file_fingerprint(run.preferences_jsonl)
    run.summary_json.write_text(json.dumps(summary))


def other_weights(run: RunFolder) -> None:
    (Path(run.manifest()["config"]["model"]) / "model.safetensors").write_text("other")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (replaced("constitution.yaml", "name: ", "name: x"), "constitution.yaml"),
        (replaced("eval_constitution.yaml", "\n", "\n# a remark\n"), None),
        (replaced("templates/critique.jinja", "{{", "Well, {{"), "templates/"),
        (replaced("prompts.jsonl", "Question", "Kwestion"), "prompts.jsonl"),
        (replaced("revisions.jsonl", "words", "swords"), "revisions.jsonl"),
        (replaced("skipped.jsonl", "", "{}"), "skipped.jsonl"),
        (replaced("run.yaml", "model: ", "# a remark\nmodel: "), "run.yaml"),
        (replaced("manifest.json", '"seed": 0', '"seed": 1'), "manifest.json"),
        (replaced("manifest.json", '"held_out": [\n  "', '"held_out": [\n  "x'), "held-out prompts"),
        (replaced("summary.json", '"mean": 0.', '"mean": 1.'), "summary.json"),
        (relabelled, "labels (preferences.jsonl)"),
        (partial(relabelled, source="revision"), "labels (preferences.jsonl)"),
        (other_weights, "base model"),
    ],
)  # fmt: skip
def test_what_was_changed_is_named(run: RunFolder, change: Callable[[RunFolder], None], part: str | None) -> None:
    change(run)
    assert (part in differing(run)) if part else differing(run) == []
    result = cai(run)
    assert result.exit_code == (1 if part else 0)
    assert part is None or part in result.output


def test_a_damaged_or_missing_file_is_a_part_that_differs(run: RunFolder) -> None:
    run.revisions_jsonl.write_text('{"prompt_id": ')
    run.rankings_jsonl.unlink()
    result = cai(run)
    assert result.exit_code == 1
    assert "revisions.jsonl:1: not valid JSON" in result.output
    assert "missing" in result.output


def test_what_another_version_of_cai_wrote_is_named_field_by_field(run: RunFolder) -> None:
    manifest, summary = run.manifest(), json.loads(run.summary_json.read_text())
    summary["metrics"]["label_p"]["mean"] = 2.0
    summary["metrics"]["later_metric"] = summary["metrics"].pop("position_bias")
    run.summary_json.write_text(json.dumps(summary))
    [note] = [check.note for check in verify_run(run) if check.part == "summary.json"]
    assert note == ("not as computed again: metrics.later_metric, metrics.position_bias, metrics.label_p.mean")
    del manifest["templates"]
    manifest["versions"]["cai"] = "9.0.0"
    run.manifest_json.write_text(json.dumps(manifest))
    [note] = [check.note for check in verify_run(run) if check.part == "templates/"]
    assert re.fullmatch(r"manifest\.json, 0\.[\d.]+, but of 9\.0\.0: no 'templates'", note), note
    manifest["config"]["judge"]["sample"] = manifest["config"]["judge"].pop("samples")
    manifest["config"]["seed"] = "x"
    run.manifest_json.write_text(json.dumps(manifest))
    with pytest.raises(CaiError) as caught:
        verify_run(run)
    assert "of this version of cai, 0." in str(caught.value) and "but of 9.0.0: seed: expected" in str(caught.value)
    assert str(caught.value).endswith("; and 1 more")
    del manifest["config"]["seed"]
    run.manifest_json.write_text(json.dumps(manifest))
    with pytest.raises(CaiError, match=r"judge\.sample: unknown key 'sample'; did you mean 'samples'"):
        verify_run(run)


def test_what_is_not_here_is_absent_and_fails_nothing(run: RunFolder, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "model")
    run.summary_json.unlink()
    assert {check.part for check in verify_run(run) if check.state == "absent"} == {"base model", "summary.json"}
    assert cai(run).exit_code == 0


def test_a_served_judge_cannot_be_asked_again(run: RunFolder) -> None:
    assert not any("server" in claim.needs for claim in reproducible(run))
    manifest = run.manifest()
    manifest["config"]["judge"]["model"] = "http://localhost:8000/v1#judge"
    run.manifest_json.write_text(json.dumps(manifest))
    assert any(claim.result.startswith("no:") for claim in reproducible(run))
    assert all(len(line) <= 80 for line in cai(run).output.splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_a_trained_policy_is_followed_from_stage_to_evaluation(tmp_path: Path, tiny_model: Path) -> None:
    run = execute_run(tmp_path, tiny_model, DPO)
    checks = {check.part: check.state for check in verify_run(run)}
    assert set(checks.values()) == {"matches"}
    assert {"train/1-dpo: data", "train/1-dpo: model", "eval: policy", "labels (eval/comparisons.jsonl)"} <= set(checks)
    config = run.train / "1-dpo/model/config.json"
    config.write_text(config.read_text() + " ")
    assert differing(run) == ["train/1-dpo/model", "eval: policy"]
    shutil.rmtree(config.parent)
    assert {check.part for check in verify_run(run) if check.state != "matches"} == {"train/1-dpo/model"}


def flip(path: Path) -> None:
    """Change one byte of a file; its size, time and inode stay."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (stat.st_mtime_ns, stat.st_ino)


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_every_file_of_results_is_hashed_and_weights_are_read_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LARGE", 1)  # every file's hash is remembered
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text(
        "".join(
            json.dumps({"prompt": f"Q{n}?", "chosen": "a longer answer", "rejected": "no"}) + "\n" for n in range(4)
        )
    )
    gate = f"judge_gate: {{data: {labelled}, accuracy: 0}}\n"
    run = execute_run(tmp_path, tiny_model, THREE + gate + DPO)
    assert {check.state for check in verify_run(run)} == {"matches"}
    weights = "train/1-dpo/model/model.safetensors"
    changes: list[tuple[str, Callable[[RunFolder], None], set[str]]] = [
        (
            "eval/evaluation.json",
            replaced("eval/evaluation.json", '"identical": ', '"identical": 1'),
            {"eval/", "eval: win rates"},
        ),
        ("eval/evaluation.json", replaced("eval/evaluation.json", '"notes": [', '"notes": ["all well",'), {"eval/"}),
        ("eval/probes.jsonl", replaced("eval/probes.jsonl", "", "{}"), {"eval/"}),
        ("eval/injection.jsonl", replaced("eval/injection.jsonl", "", "{}"), {"eval/"}),
        ("judge/judge.json", replaced("judge/judge.json", '"mean": ', '"mean": 1'), {"judge/"}),
        ("train/1-dpo/data.json", replaced("train/1-dpo/data.json", '"examples": ', '"examples": 1'), {"train/1-dpo/"}),
        (weights, lambda run: flip(run.path / weights), {"train/1-dpo/model", "eval: policy"}),
    ]
    for name, change, parts in changes:
        before = (run.path / name).read_bytes()
        change(run)
        assert set(differing(run)) - {"summary.json"} == parts, name
        assert cai(run).exit_code == 1
        (run.path / name).write_bytes(before)
    (run.path / "eval/probes.jsonl").unlink()
    assert differing(run) == ["eval/"]
    shutil.rmtree(run.eval)
    flip(run.path / weights)
    assert "train/1-dpo/model" in differing(run)


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_a_run_finished_by_an_earlier_version_says_what_is_not_recorded(tmp_path: Path, tiny_model: Path) -> None:
    run = execute_run(tmp_path, tiny_model, DPO)
    for path in (run.path / "eval/manifest.json", run.path / "train/1-dpo/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["files"]
        path.write_text(json.dumps(manifest))
    summary = json.loads(run.summary_json.read_text())
    for name in ("run.yaml", "manifest.json"):
        del summary["files"][name]
    run.summary_json.write_text(json.dumps(summary))
    unknown = {check.part for check in verify_run(run) if check.state == "not recorded"}
    assert unknown == {"run.yaml", "manifest.json", "eval/", "train/1-dpo/"}
    assert {check.state for check in verify_run(run) if check.part not in unknown} == {"matches"}
    result = cai(run)
    assert result.exit_code == 0 and "not recorded" in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines()), result.output
    [claim] = [claim for claim in reproducible(run) if claim.part == "win rates"]
    assert claim.needs == "this folder"
