"""Template folders of strangers: no command that reads one runs what is in it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cai.cli.main import main
from cai.inference.reporter import Reporter
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from tests.conftest import ROOT, scripted, write_workspace
from tests.runs.test_evaluate import make_run

PICKLE = r"cos\nsystem\n(S'touch {}'\ntR."
ATTACKS = [
    '{{{{ principle.parse_raw("{}", proto="pickle", allow_pickle=true) }}}}',
    '{{% set load = principle.parse_raw %}}{{{{ load("{}", proto="pickle", allow_pickle=true) }}}}',
    '{{{{ [principle] | map(attribute="parse_raw") | list }}}}{}',
    '{{{{ principle["parse_raw"]("{}", proto="pickle", allow_pickle=true) }}}}',
    '{{{{ (principle | attr("parse_raw"))("{}", proto="pickle", allow_pickle=true) }}}}',
]


@pytest.fixture(params=range(len(ATTACKS)))
def attack(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return ATTACKS[request.param].format(PICKLE.format(tmp_path / "PWNED"))


def planted(folder: Path, attack: str) -> Path:
    """The shipped templates, each with an attack on the line behind its own text."""
    if not folder.exists():
        shutil.copytree(ROOT / "prompts/default", folder)
    for path in folder.glob("*.jinja"):
        text = path.read_text(encoding="utf-8")
        text = text.replace("{% endblock %}", f"{attack}\n{{% endblock %}}") if "{% block" in text else text + attack
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command; returns its status and what it wrote as errors."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cai", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def refused(error: str) -> bool:
    """Whether the command ended with an error that names a template's line."""
    names = ("critique", "revise", "judge", "applies")
    return "Traceback" not in error and any(f"{name}.jinja:" in error for name in names)


def test_a_dry_run_does_not_run_a_template(
    tmp_path: Path, model_folder: Path, attack: str, cai: Callable[..., tuple[int, str]]
) -> None:
    templates = planted(tmp_path / "templates", attack)
    run_file = write_workspace(tmp_path, model_folder, extra=f"templates: {templates}\n")
    status, error = cai("run", run_file, "--dry-run", "--runs", tmp_path / "runs")
    assert status == 2
    assert refused(error)
    assert not (tmp_path / "PWNED").exists()


def test_an_export_of_a_received_run_does_not_run_its_templates(
    tmp_path: Path, model_folder: Path, attack: str, cai: Callable[..., tuple[int, str]]
) -> None:
    plan = make_plan(write_workspace(tmp_path, model_folder), [], None, tmp_path / "runs")
    execute(plan, Reporter(Console(quiet=True)), False, scripted())
    planted(plan.folder.templates, attack)
    out = tmp_path / "out.jsonl"
    status, error = cai("export", plan.folder.path, "--format", "cai-conversation", "--out", out)
    assert status == 2
    assert refused(error)
    assert not (tmp_path / "PWNED").exists()
    assert not out.exists()


def test_an_evaluation_of_a_received_run_does_not_run_its_templates(
    tmp_path: Path, attack: str, cai: Callable[..., tuple[int, str]]
) -> None:
    run = make_run(tmp_path / "runs", "received")
    planted(run.templates, attack)
    status, error = cai("eval", run.path, "--runs", tmp_path / "runs")
    assert status == 2
    assert refused(error)
    assert not (tmp_path / "PWNED").exists()
