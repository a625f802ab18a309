import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai.cli.main import app
from cai.data.jsonl import write_rows
from cai.data.records import Verdict
from cai.report.run import read_run, run_report
from cai.runs.folder import RunFolder
from tests.conftest import write_workspace
from tests.report.folders import write_run
from tests.runs.test_pipeline import carry_out


def text_of(page: str) -> str:
    """What a person reads of a page: no scripts, styles or tags."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def report(folder: RunFolder) -> str:
    return text_of(run_report(folder, read_run(folder)))


def test_a_principle_has_the_metrics_of_its_revisions_and_verdicts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    rows = folder.preferences()
    fair = Verdict(principle_id="another", principle_hash="h", p_forward=0.8, p_reverse=0.8, non_option_mass=0.25)
    write_rows(folder.preferences_jsonl, [row.model_copy(update={"verdicts": [fair]}) for row in rows])
    [drawn, judged] = read_run(folder).principles
    assert (drawn.id, drawn.share, drawn.revisions, drawn.verdicts) == ("good-for-people", 1.0, 6, 0)
    assert drawn.of_revisions["filtered"] == 0.5
    assert drawn.of_revisions["words"] == 0
    assert drawn.of_revisions["edit"] == pytest.approx(0.2)  # one word of five
    assert drawn.of_verdicts == {}
    assert (judged.id, judged.principle, judged.verdicts) == ("another", None, 6)
    assert judged.of_verdicts == pytest.approx({"label_p": 0.8, "position_bias": 0.0, "non_option_mass": 0.25})


def test_the_figures_of_the_summary_and_their_warnings_are_shown(tmp_path: Path) -> None:
    text = report(write_run(tmp_path / "run", prompts=9))
    for part in (
        "prompts 6 and 3 held out", "fails a filter 0.500", "labelled pairs 6 6 by judge",
        "ties ½; 3 prompts", "only 3 held-out prompts: the interval", "copied critique 0.500 0.25 warning",
        "1 × the reason of number 1", "12 updates; means of their first → last third: mean loss", "1-dpo: reward margin",
    ):  # fmt: skip
        assert part in text, part


def test_everything_the_run_was_made_from_is_on_the_page(tmp_path: Path) -> None:
    text = report(write_run(tmp_path / "run"))
    for part in ("the run file of number 0", "the template of number 0", "the hash of number 4", "the loss of number 0",
                 "the package of number 0 the version of number 0", "the critique of number 0"):  # fmt: skip
        assert part in text, part


def test_an_unfinished_run_has_a_report_that_says_so(tmp_path: Path, model_folder: Path) -> None:
    folder = carry_out(write_workspace(tmp_path, model_folder))
    assert "The run is unfinished" not in report(folder)
    folder.summary_json.unlink()
    folder.preferences_jsonl.unlink()
    text = report(folder)
    assert "The run is unfinished" in text
    assert "The judge was asked about no pair" in text


@pytest.mark.parametrize("kept", ["no words", "one", "damaged"])
def test_the_figures_of_a_summary_of_another_version_are_counted_anew(tmp_path: Path, kept: str) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    as_written, summary = report(folder), folder.summary()
    assert summary is not None
    del summary["metrics"]["revision_words"]
    written = {"no words": json.dumps(summary), "one": '{"prompts": 3}', "damaged": '{"pro'}[kept]
    folder.summary_json.write_text(written, encoding="utf-8")
    found = report(folder)
    for part in (
        "prompts 6 and 3 held out",
        "fails a filter 0.500",
        "12 updates; means of their first → last third: mean loss",
    ):
        assert part in as_written and part in found
    assert "unfinished" not in found


def test_rows_of_another_version_cost_the_examples_and_not_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.revisions_jsonl.write_text('{"prompt_id": "p01"}\n', encoding="utf-8")
    text = report(folder)
    assert f"The examples cannot be read: {folder.revisions_jsonl}:1: messages: missing" in text
    assert "fails a filter 0.500" in text  # of the summary
    assert "1-dpo: reward margin" in text
    folder.summary_json.unlink()
    text = report(folder)
    assert "The metrics cannot be computed" in text
    assert "The judge was asked about no pair" not in text


def test_what_else_cannot_be_read_is_shown_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.constitution_yaml.unlink()
    for file in (folder.judge / "judge.json", folder.eval / "evaluation.json"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("[]", encoding="utf-8")
    (folder.train / "1-dpo/stage.json").write_text('{"sett', encoding="utf-8")
    folder.manifest_json.write_text("{}", encoding="utf-8")
    text = report(folder)
    for part in ("The constitution cannot be read", "The judge gate cannot be read", "The policy evaluation cannot be read",
                 "Stage 1-dpo cannot be read", "model unknown", "12 updates; means of their first → last third: mean loss"):  # fmt: skip
        assert part in text, part


def test_a_training_that_was_cut_off_is_shown_as_far_as_it_got(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.summary_json.unlink()
    metrics = folder.train / "1-dpo/metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert "11 updates; means of their first → last third: mean loss" in report(folder)


def test_rewards_that_are_no_number_are_skipped_of_means_and_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.summary_json.unlink()
    scores = [1.0, float("nan"), 3.0, float("inf")]
    lines = [
        {"step": n, "loss": 0.5, "objective/scores": score, "objective/kl": float("nan")}
        for n, score in enumerate(scores)
    ]
    (folder.train / "1-dpo/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(folder)
    assert "mean score 1.000 → 3.000" in text and "KL – → –" in text
    assert "mean score is not finite in 2 updates, which its means skip" in text
    assert "KL is not finite in 4 updates, which its means skip" in text


def test_a_run_that_was_copied_away_has_the_same_report(tmp_path: Path, model_folder: Path) -> None:
    folder = carry_out(write_workspace(tmp_path, model_folder))
    before = run_report(folder, read_run(folder))
    moved = RunFolder(tmp_path / "away" / "test")
    shutil.copytree(folder.path, moved.path)
    shutil.rmtree(folder.path)
    assert run_report(moved, read_run(moved)) == before


def test_the_gate_of_a_run_is_shown_with_its_figures(tmp_path: Path) -> None:
    from cai.evaluation.judge_report import Judged, Opinion, judge_report
    from cai.inference.scheduler import Cost

    folder = write_run(tmp_path / "run")
    opinion = Opinion("good-for-people", 0.8, 0.8, 0.8, 0.1, 1.0)
    found = judge_report([Judged(f"p{n}", float(n % 2), 0.8, 3, (opinion,)) for n in range(10)], Cost(20, 0, 0, 1.0))
    folder.judge.mkdir()
    (folder.judge / "manifest.json").write_text("{}")
    (folder.judge / "judge.json").write_text(found.model_dump_json())
    text = report(folder)
    assert "Judge gate: accuracy on labelled pairs before the run" in text
    assert "accuracy 0.500" in text
    assert "does not differ significantly from chance" in text


def test_the_command_writes_the_page_and_says_where(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/one")
    found = CliRunner().invoke(app, ["report", "one", "--runs", str(tmp_path / "runs")])
    assert found.exit_code == 0, found.output
    assert f"Wrote {tmp_path}/runs/one/report.html (4." in found.output.replace("\n", "")
    assert "6 examples" in found.output
    page = (tmp_path / "runs/one/report.html").read_text(encoding="utf-8")
    assert "<script src" not in page
    assert page.count("http-equiv") == 1


def test_a_link_out_of_a_received_folder_is_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / "secret").write_text("SECRET", encoding="utf-8")
    (folder.templates / "critique.jinja").unlink(missing_ok=True)
    (folder.templates / "critique.jinja").symlink_to(tmp_path / "secret")
    page = report(folder)
    assert "SECRET" not in page
    assert "the template of number 0" in page
