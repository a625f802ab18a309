import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml
from rich.console import Console

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.preferences import read_preferences
from cai.data.records import Preference, Revision, Skipped
from cai.inference.reporter import Reporter
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.publish import publish, write_dataset
from tests.conftest import scripted, write_workspace

HOSTILE = "```\n````\n# Title <script>alert(1)</script>\n| a | b |\x1b[2J\u202e"


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> RunFolder:
    plan = make_plan(write_workspace(tmp_path, model_folder), [], None, tmp_path / "runs")
    execute(plan, Reporter(Console(quiet=True)), False, scripted())
    return plan.folder


def load(folder: Path, config: str | None = None) -> datasets.DatasetDict:
    return datasets.load_dataset(str(folder), config, cache_dir=str(folder.parent / "cache"))


def header(folder: Path) -> dict[str, Any]:
    _, text, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_datasets_loads_a_run_and_finds_its_rows(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "ds"
    found = write_dataset(run, folder, "cc-by-4.0")
    pairs = load(folder)  # the default configuration
    assert [Preference.model_validate(row) for row in pairs["train"]] == run.preferences()
    assert [Revision.model_validate(row) for row in load(folder, "revisions")["train"]] == run.revisions()
    prompts = load(folder, "prompts")
    assert {name: len(rows) for name, rows in prompts.items()} == {"train": 6, "test": 2}
    assert set(prompts["test"]["id"]) == set(run.manifest()["held_out"])
    assert [(split.config, split.split, len(split.rows)) for split in found] == [
        ("preferences", "train", 12), ("revisions", "train", 12), ("prompts", "train", 6), ("prompts", "test", 2),
    ]  # fmt: skip
    assert read_preferences(folder / "preferences" / "train.parquet") == (run.preferences(), [])
    assert (folder / "constitution.yaml").read_bytes() == run.constitution_yaml.read_bytes()


def test_sets_of_one_folder_name_are_loaded_apart(run: RunFolder, tmp_path: Path) -> None:
    """`datasets` caches rows by the folder's name and the card's header, whatever stands in the files."""
    write_dataset(run, tmp_path / "a/set", "unknown")
    rows = run.preferences()
    write_rows(run.preferences_jsonl, [row.model_copy(update={"chosen": "another"}) for row in rows])
    write_dataset(run, tmp_path / "b/set", "unknown")
    first, second = (
        datasets.load_dataset(str(tmp_path / name / "set"), split="train", cache_dir=str(tmp_path / "cache"))["chosen"][
            :
        ]
        for name in ("a", "b")
    )
    assert first == [row.chosen for row in rows]
    assert second == ["another"] * len(rows)


def test_the_card_names_what_the_data_was_made_from_and_how_good_it_is(run: RunFolder, tmp_path: Path) -> None:
    write_dataset(run, tmp_path / "ds", "cc-by-4.0")
    card, manifest = (tmp_path / "ds" / "README.md").read_text(encoding="utf-8"), run.manifest()
    head = header(tmp_path / "ds")
    assert (head["license"], head["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert [config["config_name"] for config in head["configs"] if config.get("default")] == ["preferences"]
    for content in (
        manifest["model"],
        manifest["constitution"]["fingerprint"],
        manifest["prompts"],
        manifest["templates"],
    ):
        assert content in card
    principle = run.constitution().principles[0]
    assert principle.id in card
    assert "| copied critique: most of the revision is copied from the critique |" in card
    assert "| position bias: verdicts that prefer the same position in both orders |" in card
    kind = "a pair of answers; `p` is the probability that `chosen` is better; `verdicts` are the principles'"
    assert f"| `preferences` | train | 12 | {kind} |" in card
    assert run.revisions()[0].revision in card
    assert "this dataset: cc-by-4.0" in card
    assert str(tmp_path) not in card  # where files lie on this machine is no one's business


def test_what_people_or_models_wrote_stays_text(run: RunFolder, tmp_path: Path) -> None:
    rows = [row.model_copy(update={"revision": HOSTILE, "critique": HOSTILE}) for row in run.revisions()]
    write_rows(run.revisions_jsonl, rows)
    write_dataset(run, tmp_path / "ds", "unknown")
    card = (tmp_path / "ds" / "README.md").read_text(encoding="utf-8")
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert f"`````text\n{shown}\n`````" in card
    assert card.count("<script>") == card.count(shown) == 2
    assert "\x1b" not in card


@pytest.mark.parametrize(
    ("settings", "absent", "present"),
    [
        (
            ("revise.label=off", "judge.samples=0", "judge.revisions=false"),
            ["osition bias", "verdict", "judge", "pairs", "a pair of", "- preference", "eval_", "`preferences`"],
            ["wrote the answers, critiques and revisions.", "fail a filter"],
        ),
        (
            ("revise.label=certain", "judge.samples=0", "judge.revisions=false"),
            ["osition bias", "verdict", "judge", "eval_"],
            ["pairs by revision", "a pair of answers; `p` is the probability that `chosen` is better |"],
        ),
        (
            ("revise.rounds=0",),
            ["evision", "critique", "eval_", "fail a filter"],
            ["Position bias is", "wrote the answers and verdicts.", "terms of the judge"],
        ),
    ],
)
def test_the_card_of_a_run_speaks_of_what_the_run_has(
    tmp_path: Path, model_folder: Path, settings: tuple[str, ...], absent: list[str], present: list[str]
) -> None:
    plan = make_plan(write_workspace(tmp_path, model_folder), list(settings), None, tmp_path / "runs")
    execute(plan, Reporter(Console(quiet=True)), False, scripted())
    write_dataset(plan.folder, tmp_path / "ds", "unknown")
    card = (tmp_path / "ds/README.md").read_text(encoding="utf-8")
    before, _, rest = card.partition("## Constitution")
    text = before + rest[rest.index("## Generation") : rest.index("## Example")] + rest[rest.index("## Limitations") :]
    without_settings = re.sub(r"```yaml\n(revise|judge):\n.*?```", "", text, flags=re.DOTALL)
    assert [word for word in absent if word in without_settings] == []
    assert [word for word in present if word not in text] == []
    assert not (tmp_path / "ds/eval_constitution.yaml").exists()


def test_a_gates_metrics_and_what_is_skipped_stand_on_the_card(tmp_path: Path, model_folder: Path) -> None:
    pairs = [{"prompt": f"{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    (tmp_path / "labelled.json").write_text(json.dumps(pairs))
    run_file = write_workspace(tmp_path, model_folder, extra=f"judge_gate: {{data: {tmp_path / 'labelled.json'}}}\n")
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    execute(plan, Reporter(Console(quiet=True)), False, scripted())
    write_rows(plan.folder.skipped_jsonl, [Skipped(prompt_id="x", stage="s", reason="because")])
    write_dataset(plan.folder, tmp_path / "ds", "unknown")
    card = (tmp_path / "ds" / "README.md").read_text(encoding="utf-8")
    accuracy = json.loads((plan.folder.judge / "judge.json").read_text(encoding="utf-8"))["accuracy"]["mean"]
    assert f"| judge on labelled pairs: accuracy | {accuracy:.3f} [" in card
    assert "```text\n1 × because\n```" in card


def test_a_folder_that_is_there_and_a_run_without_rows_are_refused(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    with pytest.raises(CaiError, match="ds: exists already"):
        write_dataset(run, tmp_path / "ds", "unknown")
    for file in (run.revisions_jsonl, run.preferences_jsonl):
        file.unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CaiError, match="has no revisions, preferences or evaluation yet"):
        write_dataset(run, tmp_path / "new", "unknown")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_unfinished_run_cannot_be_published(run: RunFolder, tmp_path: Path) -> None:
    write_dataset(run, tmp_path / "done", "unknown")
    run.summary_json.unlink()
    write_dataset(run, tmp_path / "ds", "unknown")
    said = [(tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("done", "ds")]
    assert ["The run was not finished" in text for text in said] == [False, True]


def test_a_data_set_of_the_hub_is_made_private_and_uploaded_whole(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(repo=None, files=[])

    def create_repo(_: object, repo: str, **options: Any) -> str:
        made.repo = (repo, options)
        return f"https://hub/{repo}"

    def upload_folder(_: object, repo_id: str, folder_path: Path, repo_type: str) -> None:
        made.files = sorted(str(path.relative_to(folder_path)) for path in folder_path.rglob("*.*"))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    assert publish(run, "org/name", "cc0-1.0") == "https://hub/org/name"
    assert made.repo == ("org/name", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert made.files[:2] == ["README.md", "constitution.yaml"]
    assert "preferences/train.parquet" in made.files

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(
        CaiError, match=r"--to hub:org/name: the upload failed \(`hf auth login` sets a token\): no route$"
    ):
        publish(run, "org/name", "cc0-1.0")


def test_what_a_killed_export_left_is_removed_by_the_next(run: RunFolder, tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left, others = (tmp_path / f".ds-x.{pid}.part" for pid in (gone.stdout.strip(), os.getppid()))
    for folder in (left, others):
        (folder / "ds").mkdir(parents=True)
    write_dataset(run, tmp_path / "ds", "cc-by-4.0")
    assert not left.exists()
    assert others.exists()
