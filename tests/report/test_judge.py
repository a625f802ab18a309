import json
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Preference, Skipped, Verdict
from cai.evaluation.judge_report import judge_report
from cai.evaluation.judged_pairs import judged
from cai.inference.scheduler import Cost
from cai.report.judge import most_confident_mistakes, write_judge_page


def verdict(p: float) -> Verdict:
    return Verdict(
        principle_id="kind", principle_hash="0" * 12, p_forward=p, p_reverse=p, non_option_mass=0.01, weight=1.0
    )


def pair(number: int, p: float, label: float) -> Preference:
    return Preference(
        prompt_id=f"q{number}", messages=[{"role": "user", "content": f"<b>why {number}</b>"}], tags=[],
        chosen=f"chosen {number}", rejected=f"rejected, {number}", p=p, source="judge", input_p=label,
        verdicts=[verdict(p)],
    )  # fmt: skip


def write_evaluation(folder: Path) -> None:
    """What `cai judge-eval` leaves: seven mistakes, growing in confidence, and three agreements."""
    folder.mkdir(exist_ok=True)
    pairs = [pair(i, 0.51 + i / 20, 0.0) for i in range(7)] + [pair(i, 0.9, 1.0) for i in range(7, 10)]
    write_rows(folder / "verdicts.jsonl", pairs)
    write_rows(folder / "skipped.jsonl", [Skipped(prompt_id="x", stage="2", reason="an empty answer", failed=False)])
    report = judge_report([judged(p) for p in pairs], Cost(20, 0, 20, 1.0), calibrate=True)
    manifest = {
        "command": "cai judge-eval",
        "where": {"data": "labels.jsonl", "judges": ["judge <1>"]},
        "constitution": {"name": "kind", "principles": {"kind": {}}},
        "settings": {"principles": "all"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "judge.json").write_text(report.model_dump_json(), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_evaluation(tmp_path)
    return tmp_path


def test_the_page_is_a_function_of_the_folder(folder: Path) -> None:
    path = write_judge_page(folder)
    html = path.read_text(encoding="utf-8")
    assert path == folder / "judge.html"
    for part in ("labels.jsonl", "judge &lt;1&gt;", "&lt;b&gt;why 6&lt;/b&gt;", "1 × an empty answer", "<svg"):
        assert part in html
    assert write_judge_page(folder).read_text(encoding="utf-8") == html


def test_the_page_shows_the_mistakes_that_the_judge_is_most_confident_of(folder: Path) -> None:
    assert [m.prompt_id for m in most_confident_mistakes(folder)] == ["q6", "q5", "q4", "q3", "q2"]
    html = write_judge_page(folder).read_text(encoding="utf-8")
    assert "chosen 2" in html
    assert "chosen 1" not in html


def test_a_report_of_another_format_is_refused_with_what_to_do(folder: Path) -> None:
    report = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    del report["format"]
    (folder / "judge.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(
        CaiError, match=r"judge\.json: expected .* format 3, found format 1.* `cai judge-eval --replace`"
    ):
        write_judge_page(folder)


def test_an_unfinished_report_is_refused_by_name(folder: Path) -> None:
    (folder / "judge.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CaiError, match=r"judge\.json: expected a finished report of `cai judge-eval`; 'prompts'"):
        write_judge_page(folder)
