"""The committed schemas are those of the models, and say of a file what loading it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cai.cli.main import main
from cai.cli.schema import schema, schema_text
from cai.config.errors import CaiError
from cai.config.yaml_files import load_yaml
from cai.constitution import principles
from cai.runs.run_file import RunConfig
from tests.conftest import ROOT

jsonschema = pytest.importorskip("jsonschema")
TESTED = "name: c\nprinciples: [{{id: a, critique: c, revision: r, judge: j, tests: [{{{}}}]}}]"
KINDS = {"constitutions": "constitution", "examples": "run", "experiments": "sweep"}
FILES = [path for folder in KINDS for path in sorted(ROOT.glob(f"{folder}/*.yaml"))]


def kind_of(path: Path) -> str:
    return KINDS[path.parent.name]


def faults(kind: str, value: Any) -> list[str]:
    schema = json.loads(schema_text(kind))
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]


@pytest.mark.parametrize("kind", KINDS.values())
def test_the_committed_schema_is_that_of_the_model(kind: str) -> None:
    path = ROOT / f"schemas/{kind}.json"
    assert path.read_text(encoding="utf-8") == schema_text(kind), f"cai schema {kind} --out schemas/{kind}.json"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_shipped_file_names_its_schema_and_fits_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first == f"# yaml-language-server: $schema=../schemas/{kind_of(path)}.json"
    assert (path.parent / first.rpartition("=")[2]).resolve().is_file()
    assert faults(kind_of(path), yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("constitution", "name: c\nprinciples: []"),
        ("constitution", "name: c\nprinciples: [{id: a, critique: c, revision: r}]"),
        ("constitution", "name: c\nprinciples: [{id: A, critique: c, revision: r, judge: j}]"),
        ("constitution", "name: c\nprinciples: [{id: a, critique: ' ', revision: r, judge: j}]"),
        ("constitution", "name: c\nprinciples: [{id: a, critique: c, revision: r, judge: j, weight: 0}]"),
        ("constitution", "name: c\nprinciples: [{id: a, critique: c, revison: r, judge: j}]"),
        ("constitution", TESTED.format("prompt: p, draft: d")),
        ("constitution", TESTED.format("prompt: p, draft: ' ', critique: finds")),
        ("constitution", TESTED.format("prompt: p, draft: d, critique: nothing")),
        ("constitution", TESTED.format("prompt: p, draft: d, revision: {}")),
        ("run", "model: m\nconstitution: c"),
        ("run", "model: m\nconstitution: c\nprompts: {source: s, holdout: 1}"),
        ("run", "model: m\nconstitution: c\nprompts: {source: s}\ntrain: [{stage: sft, beta: 0.1}]"),
        ("run", "model: m\nconstitution: c\nprompts: {source: s}\ntrain: [{stage: unknown}]"),
        ("run", "model: m\nconstitution: c\nprompts: {source: s}\ntrain: {stage: sft}"),
        ("run", "model: m\nconstitution: c\nprompts: {source: s}\nrevise: {rounds: -1}"),
    ],
)
def test_what_does_not_load_does_not_fit_its_schema(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaiError):
        load_yaml(path, principles.Constitution if kind == "constitution" else RunConfig)
    assert faults(kind, yaml.safe_load(text))


@pytest.mark.parametrize("train", ["null", "[]", "[{stage: sft}, {stage: dpo, beta: 0.2}]"])
def test_what_trains_or_trains_nothing_fits_the_schema(train: str, tmp_path: Path) -> None:
    text = f"model: m\nconstitution: c\nprompts: {{source: s}}\ntrain: {train}"
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    load_yaml(tmp_path / "f.yaml", RunConfig)
    assert faults("run", yaml.safe_load(text)) == []


def test_a_field_of_a_constitution_is_explained() -> None:
    principle = json.loads(schema_text("constitution"))["$defs"]["Principle"]
    assert all(field["description"] for field in principle["properties"].values())


def test_a_schema_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cai(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["cai", "schema", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0)

    assert cai("constitution") == 0
    assert capsys.readouterr().out == schema_text("constitution")
    for _ in range(2):  # a second time it is brought up to date
        assert cai("run", "--out", tmp_path / "deep/run.json") == 0
    assert (tmp_path / "deep/run.json").read_text(encoding="utf-8") == schema_text("run")
    assert "yaml-language-server: $schema=" in capsys.readouterr().out
    assert cai("runs") == 2
    assert "unknown kind 'runs'; expected constitution, run or sweep" in capsys.readouterr().err
    assert cai("run", "--out", tmp_path / "deep/run.json/x.json") == 2
    assert "x.json: cannot be written" in capsys.readouterr().err


def test_every_setting_of_a_run_is_described_but_the_stages_name() -> None:
    schema = json.loads(schema_text("run"))
    bare = {
        name
        for model in (schema, *schema["$defs"].values())
        for name, field in model.get("properties", {}).items()
        if not field.get("description")
    }
    assert bare == {"stage"}


def test_schemas_import_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from cai.cli.schema import schema, schema_text; schema_text('run'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_schema_is_written_over_an_older_one_and_over_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "mine.yaml"
    precious.write_text("name: mine\n", encoding="utf-8")
    with pytest.raises(CaiError, match="exists and is not a schema of a constitution"):
        schema("constitution", precious)
    assert precious.read_text(encoding="utf-8") == "name: mine\n"
    out = tmp_path / "schema.json"
    schema("constitution", out)
    assert "replacing an older one" not in capsys.readouterr().out
    schema("constitution", out)
    assert f"Wrote {out}, replacing an older one." in capsys.readouterr().out
    with pytest.raises(CaiError, match="exists and is not a schema of a run"):
        schema("run", out)
    assert out.read_text(encoding="utf-8") == schema_text("constitution")
