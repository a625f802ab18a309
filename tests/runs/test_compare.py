import random
from pathlib import Path

import pytest

from cai.engines.base import Generate
from cai.errors import CaiError
from cai.runs.compare import change, compare_runs
from cai.runs.folder import RunFolder, open_run
from cai.runs.report import comparison_page, marked_words
from tests.conftest import scripted, write_workspace
from tests.runs.test_pipeline import carry_out

HOSTILE = "<script>alert(1)</script> </div><img src=x onerror=alert(2)> & \u202e {{ 7*7 }}"


def hostile(request: Generate) -> str:
    return f"{HOSTILE} {random.Random(request.seed).random()} {request.messages[-1]['content'][:30]}"


def two_runs(tmp_path: Path, model: Path, text: bool = False) -> tuple[RunFolder, RunFolder]:
    run_file = write_workspace(tmp_path, model)
    engine = scripted(answer=hostile) if text else None
    a = carry_out(run_file, name="a", open_engine=engine)
    b = carry_out(run_file, name="b", overrides=("constitution=constitutions/brief.yaml",), open_engine=engine)
    return a, b


def test_a_comparison_tells_what_differs(tmp_path: Path, model_folder: Path) -> None:
    found = compare_runs(*two_runs(tmp_path, model_folder))
    assert found.settings == ['constitution: "constitutions/harmless.yaml" → "constitutions/brief.yaml"']
    assert (len(found.principles.removed), len(found.principles.added)) == (16, 4)
    assert found.shared == 8
    drafts = next(f for f in found.figures if f.name == "draft, words")
    assert (drafts.difference.mean, drafts.difference.n) == (0.0, 6)
    assert any("no held-out prompt was evaluated" in note for note in found.notes)


def test_a_run_compared_with_itself_shows_no_difference(tmp_path: Path, model_folder: Path) -> None:
    a, _ = two_runs(tmp_path, model_folder)
    found = compare_runs(a, a)
    assert found.settings == []
    assert not any(found.principles)
    assert all(f.a == f.b and f.difference.mean == 0 for f in found.figures)
    assert all(e.change == 0 for e in found.examples)


def test_runs_without_shared_prompts_are_not_paired(tmp_path: Path, model_folder: Path) -> None:
    a, _ = two_runs(tmp_path, model_folder)
    other = tmp_path / "other"
    other.mkdir()
    run_file = write_workspace(other, model_folder)
    (other / "prompts.jsonl").write_text('{"id": "p1", "prompt": "Something else?"}\n{"id": "q", "prompt": "And?"}\n')
    found = compare_runs(a, carry_out(run_file))
    assert (found.shared, found.figures, found.examples) == (0, [], [])
    assert "the runs share no prompts: nothing can be paired" in found.notes
    assert "Nothing can be paired" in comparison_page(found)


def test_runs_can_be_copied_away_and_still_be_compared(tmp_path: Path, model_folder: Path) -> None:
    import shutil

    a, b = two_runs(tmp_path, model_folder)
    before = comparison_page(compare_runs(a, b))
    away = tmp_path / "away"
    shutil.move(tmp_path / "runs", away)
    shutil.rmtree(model_folder)
    assert comparison_page(compare_runs(open_run("a", away), open_run(str(away / "b"), tmp_path))) == before


def test_model_text_cannot_become_markup(tmp_path: Path, model_folder: Path) -> None:
    page = comparison_page(compare_runs(*two_runs(tmp_path, model_folder, text=True)))
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "49" not in page.split("</style>")[1].split("{{")[0] or "{{ 7*7 }}" in page
    assert "http" not in page.replace("http-equiv", "")


def test_changed_words_are_marked_on_their_side() -> None:
    assert str(marked_words("boil an egg", "boil two eggs", "del")) == "boil <del>an egg</del>"
    assert str(marked_words("a <b>", "a", "ins")) == "a <ins>&lt;b&gt;</ins>"


def test_change_is_the_share_of_words_that_differ() -> None:
    assert change("a b c d", "a b c d") == 0.0
    assert change("a b", "c d") == 1.0
    assert change("", "") == 0.0
    assert change("a b c d", "a b x y") == pytest.approx(0.5)


def test_an_unknown_run_is_answered_with_the_known_ones(tmp_path: Path, model_folder: Path) -> None:
    two_runs(tmp_path, model_folder)
    with pytest.raises(CaiError, match=r"no run 'c' in .*runs there: a, b"):
        open_run("c", tmp_path / "runs")
