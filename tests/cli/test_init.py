"""`cai init`: what it writes is a run that starts, for any file of prompts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai.cli.init import _derived_name
from cai.cli.main import app
from cai.config.errors import CaiError
from cai.config.locate import find_data
from cai.constitution.principles import load_constitution
from cai.runs.run_file import load_run_file


def cai(*words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def cai_fails(*words: str) -> str:
    with pytest.raises(CaiError) as caught:
        CliRunner().invoke(app, words, catch_exceptions=False)
    return str(caught.value)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_of_prompts_becomes_a_run_that_starts(here: Path) -> None:
    (here / "questions.txt").write_text("".join(f"Why is {n} odd?\n" for n in range(1, 99, 2)))
    output = cai("init", "questions.txt")
    assert "Read 49 prompts from questions.txt" in output
    config = load_run_file(here / "run.yaml", [])
    assert (config.prompts.source, config.prompts.limit, config.prompts.holdout) == ("questions.txt", None, 0.33)
    assert config.name == "questions"
    assert [stage.stage for stage in config.train] == ["dpo"]
    (principle,) = load_constitution(here / "constitution.yaml").principles
    assert principle.tests
    assert "cai run run.yaml --dry-run" in output


def test_the_small_model_is_prepared_first_where_it_is_not_yet(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "questions.txt").write_text("Why?\n")
    monkeypatch.setattr("cai.cli.init.small_model_folder", lambda: here / "none")
    assert "cai models prepare" in cai("init", "questions.txt", "--out", "first")
    assert "models prepare" not in cai("init", "questions.txt", "--out", "second", "--model", "org/some-model")
    monkeypatch.setattr("cai.cli.init.small_model_folder", lambda: here)
    assert "models prepare" not in cai("init", "questions.txt", "--out", "third")


def test_a_project_in_another_folder_finds_its_prompts(here: Path) -> None:
    (here / "my prompts.csv").write_text("id,question,source\n1,Why?,web\n")
    output = cai_fails("init", "my prompts.csv", "--out", "project")
    assert "name one, such as --column question" in output
    cai("init", "my prompts.csv", "--out", "project", "--column", "question", "--model", "org/some-model")
    config = load_run_file(here / "project/run.yaml", [])
    assert Path(config.prompts.source) == here / "my prompts.csv"
    assert config.name == "my-prompts"
    assert (config.prompts.column, config.model) == ("question", "org/some-model")


@pytest.mark.parametrize(
    ("prompts", "out", "source"),
    [
        ("project/q.txt", "project", "q.txt"),
        ("project/data/q.txt", "project", "data/q.txt"),
        ("project/q.txt", "project/sub", "FULL"),
        ("q.txt", ".", "q.txt"),
        ("FULL", ".", "q.txt"),
    ],
)
def test_prompts_are_named_from_the_run_file_where_they_lie_in_its_folder(
    here: Path, prompts: str, out: str, source: str
) -> None:
    file = here / ("q.txt" if prompts == "FULL" else prompts)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("Why is the sky blue?\n")
    cai("init", prompts.replace("FULL", str(file)), "--out", out)
    config = load_run_file(here / out / "run.yaml", [])
    assert config.prompts.source == source.replace("FULL", str(file))
    assert find_data("prompts.source", config.prompts.source, Path(out) / "run.yaml").samefile(file)


def test_a_name_that_is_another_file_from_here_is_written_in_full(here: Path) -> None:
    for folder in (here, here / "project"):
        folder.mkdir(exist_ok=True)
        (folder / "q.txt").write_text("Why is the sky blue?\n")
    cai("init", "project/q.txt", "--out", "project")
    assert load_run_file(here / "project/run.yaml", []).prompts.source == str(here / "project/q.txt")


@pytest.mark.parametrize(
    ("prompts", "name"), [("my questions.v2.csv", "my-questions"), ("_.txt", "run"), ("äöü-1.jsonl.gz", "1")]
)
def test_a_run_is_named_after_its_prompts(here: Path, prompts: str, name: str) -> None:
    assert _derived_name(f"data/{prompts}") == name
    assert _derived_name("org/some-data:train") == "some-data"


def test_a_run_gets_the_name_that_is_given(here: Path) -> None:
    (here / "q.txt").write_text("Why is the sky blue?\n")
    assert "--name ../up: expected a name of letters, digits" in cai_fails("init", "q.txt", "--name", "../up")
    cai("init", "q.txt", "--name", "first.try")
    assert load_run_file(here / "run.yaml", []).name == "first.try"


def test_many_prompts_are_limited(here: Path) -> None:
    (here / "p.txt").write_text("".join(f"Why is {n}?\n" for n in range(1500)))
    assert "more than 1,000 prompts" in cai("init", "p.txt")
    assert load_run_file(here / "run.yaml", []).prompts.limit == 1000


def test_rows_that_are_no_prompts_are_counted_and_do_not_hide_that_there_are_more(here: Path) -> None:
    (here / "p.txt").write_text("Why?\n" + "".join(f"Why is {n}?\n" for n in range(3)) + "Why?\n")
    output = cai("init", "p.txt")
    assert "Read 4 prompts from p.txt (prompt).\n  skipped: 1 × a row above has the same prompt (p.txt:5)\n" in output
    (here / "many.txt").write_text("Why?\nWhy?\n" + "".join(f"Why is {n}?\n" for n in range(1000)))
    assert "more than 1,000 prompts" in cai("init", "many.txt", "--out", "many")
    assert load_run_file(here / "many/run.yaml", []).prompts.limit == 1000


def test_a_model_that_is_no_folder_and_no_full_hub_id_is_refused(here: Path) -> None:
    (here / "p.txt").write_text("Why?\n")
    assert "model 'smollm2-135': no such folder; did you mean 'sm" in cai_fails(
        "init", "p.txt", "--model", "smollm2-135"
    )
    assert "model 'gpt2': no such folder; expected smollm2-135m, " in cai_fails("init", "p.txt", "--model", "gpt2")
    assert not (here / "run.yaml").exists()
    (here / "mine").mkdir()
    cai("init", "p.txt", "--model", "mine")


def test_nothing_is_overwritten_and_nothing_guessed(here: Path) -> None:
    assert "PROMPTS: expected a file of prompts" in cai_fails("init")
    assert "none.txt: no such file" in cai_fails("init", "none.txt")
    (here / "p.txt").write_text("Why?\n")
    (here / "run.yaml").write_text("mine")
    assert "run.yaml: already exists" in cai_fails("init", "p.txt")
    assert not (here / "constitution.yaml").exists()
    assert (here / "run.yaml").read_text() == "mine"
