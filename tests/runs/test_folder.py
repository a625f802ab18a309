import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.config.locate import local_file
from cai.config.yaml_files import read_kind
from cai.data.manifest import read_json
from cai.report.serve import Library
from cai.runs.find import find_constitution, find_policy
from cai.runs.folder import RunFolder, all_runs, open_run, open_sweep
from tests.report.folders import write_run


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ("[]", r"manifest\.json: expected a JSON object, found \[\]"),
        ('{"config": [1]}', r"manifest\.json: config: expected an object, found \[1\]"),
        (
            '{"config": {}, "eval_constitution": "r"}',
            r'manifest\.json: eval_constitution: expected an object, found "r"',
        ),
        ('{"con', r"manifest\.json: not valid JSON: it ends at column 5"),
    ],
)
def test_a_damaged_manifest_is_named_with_what_was_expected(tmp_path: Path, manifest: str, expected: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(CaiError, match=expected):
        RunFolder(tmp_path).manifest()


def test_a_damaged_run_does_not_hide_the_others_from_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    for name in ("fine [b]one[-b]", "empty", "older", "folder"):
        write_run(tmp_path / name, prompts=9)
    (tmp_path / "empty/manifest.json").write_text("{}")
    (tmp_path / "older/summary.json").write_text('{"prompts": 3}')
    (tmp_path / "folder/manifest.json").write_text("")
    found = CliRunner().invoke(app, ["runs", "--runs", str(tmp_path)])
    assert found.exit_code == 0, found.exception
    for part in ("fine [b]one[-b]", "1.000 [0.438, 1.000]", "written by another version of cai", "not valid JSON"):
        assert part in found.output


def test_when_a_run_was_started_is_the_same_in_a_copy_and_both_lists_have_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    for name, day in (("second", 2), ("third", 3), ("first", 1)):
        write_run(tmp_path / "runs" / name, prompts=9)
        (tmp_path / "runs" / name / "log.txt").write_text(
            f"2026-01-0{day}T10:30:00 {name}: 6 prompts for training\n2026-02-01T00:00:00 again\n"
        )
    write_run(tmp_path / "runs/unknown", prompts=9)
    shutil.copytree(tmp_path / "runs", tmp_path / "copy", copy_function=shutil.copyfile)  # the files' times are new
    for folder in (tmp_path / "runs", tmp_path / "copy"):
        lines = CliRunner().invoke(app, ["runs", "--runs", str(folder)]).output.splitlines()[1:]
        listed = [" ".join(line.split()[:3]) for line in lines]
        assert listed[:3] == ["third 2026-01-03 10:30", "second 2026-01-02 10:30", "first 2026-01-01 10:30"]
        assert listed[3].startswith("unknown –")
        assert list(Library(folder).folders()) == ["third", "second", "first", "unknown"]


def test_a_mistyped_run_or_sweep_is_answered_with_the_nearest_or_else_with_all_in_order(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("zebra", "demo-brief", "leave-one-out/all"):
        write_run(runs / name, prompts=6)
    (runs / "leave-one-out/sweep.json").write_text("{}")
    for name in ("demo-breif", str(runs / "demo-breif/")):
        with pytest.raises(CaiError, match=r"no run '.*demo-breif/?' in .* \(did you mean 'demo-brief'\?\)$"):
            open_run(name, runs)
    with pytest.raises(CaiError, match=r"\(runs there: demo-brief, leave-one-out/all, zebra\)$"):
        open_run("qqq", runs)
    with pytest.raises(CaiError, match=r"no sweep 'leave-one-ot' in .* \(did you mean 'leave-one-out'\?\)$"):
        open_sweep("leave-one-ot", runs)
    with pytest.raises(CaiError, match=r"\(sweeps there: leave-one-out\)$"):
        open_sweep("qqq", runs)
    assert open_sweep("leave-one-out", runs) == runs / "leave-one-out"


def test_a_run_of_cai_0_1_is_refused_by_every_way_to_open_one(tmp_path: Path) -> None:
    (tmp_path / "runs/old").mkdir(parents=True)
    (tmp_path / "runs/old/lock.json").write_text("{}")
    for name in ("old", str(tmp_path / "runs/old")):
        with pytest.raises(CaiError, match=r"old: written by cai 0\.1 \(it has lock\.json\).*run the command again"):
            open_run(name, tmp_path / "runs")
        with pytest.raises(CaiError, match=r"written by cai 0\.1"):
            find_policy(name, tmp_path / "runs")
    for command in (
        ["show", "old"],
        ["report", "old"],
        ["compare", "old", "old"],
        ["export", "old", "--format", "kto", "--out", "x.jsonl"],
    ):
        result = CliRunner().invoke(app, [*command, "--runs", str(tmp_path / "runs")])
        assert isinstance(result.exception, CaiError) and "written by cai 0.1" in str(result.exception)


def test_the_results_of_other_commands_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "run", prompts=6)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/manifest.json").write_text('{"command": "cai judge"}')
    assert [run.name for run in all_runs(tmp_path)] == ["run"]
    with pytest.raises(CaiError, match=r"labels: holds the results of `cai judge`, not a run \(runs there: run\)$"):
        open_run("labels", tmp_path)


@pytest.mark.parametrize(
    ("stage", "suggested"),
    [("reward", "cai train ppo --reward {}/model --data PROMPTS --model MODEL"), ("dpo", "cai eval {}")],
)
def test_what_goes_on_from_a_training_depends_on_what_it_trained(tmp_path: Path, stage: str, suggested: str) -> None:
    (tmp_path / "manifest.json").write_text('{"command": "cai train"}')
    (tmp_path / "stage.json").write_text(json.dumps({"settings": {"stage": stage}}))
    with pytest.raises(CaiError) as raised:
        open_run(str(tmp_path), tmp_path / "runs")
    assert re.findall("`(cai (?:train|eval) .*?)`", str(raised.value)) == [suggested.format(tmp_path)]


@pytest.mark.parametrize("name", ["http://me:SEKRET@h/v1", "http:/me:SEKRET@h/v1"])
def test_an_address_in_place_of_a_run_or_file_is_named_without_its_password(tmp_path: Path, name: str) -> None:
    for find in (
        lambda: open_run(name, tmp_path),
        lambda: open_sweep(name, tmp_path),
        lambda: find_policy(name, tmp_path),
        lambda: find_constitution(name, tmp_path),
        lambda: local_file(name),
        lambda: read_json(Path(name)),
        lambda: read_kind(Path(name), "run"),
    ):
        with pytest.raises(CaiError) as error:
            find()
        assert "SEKRET" not in str(error.value) and "***@h" in str(error.value)
