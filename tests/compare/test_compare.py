from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from cai.cli.compare_output import comparison_parts
from cai.cli.console import show
from cai.compare.compare import compare_runs
from cai.config.errors import CaiError
from cai.runs.folder import RunFolder, open_run
from tests.compare.made import make_run, principles
from tests.conftest import SIXTEEN, write_workspace
from tests.runs.test_pipeline import run_to_end


def two_runs(tmp_path: Path, model: Path) -> tuple[RunFolder, RunFolder]:
    run_file = write_workspace(tmp_path, model)
    a = run_to_end(run_file, name="a")
    b = run_to_end(run_file, name="b", overrides=("constitution=constitutions/brief.yaml",))
    return a, b


def test_a_comparison_shows_what_differs(tmp_path: Path, model_folder: Path) -> None:
    found = compare_runs(two_runs(tmp_path, model_folder))
    (pair,) = found.pairs
    assert pair.settings == [f'constitution: "{SIXTEEN}" → "constitutions/brief.yaml"']
    assert Counter(p.kind for p in pair.principles) == {"removed": 16, "added": 4}
    assert (pair.shared, pair.shared_held_out, pair.only, pair.only_held_out) == (6, 2, (0, 0), (0, 0))
    drafts = next(f for f in pair.metrics if f.key == "draft_words")
    assert (drafts.effect.mean, drafts.effect.n) == (0.0, 6)
    assert "a trains no policy, so none is evaluated" in found.warnings


def test_a_run_compared_with_itself_shows_no_difference(tmp_path: Path, model_folder: Path) -> None:
    a, _ = two_runs(tmp_path, model_folder)
    found = compare_runs([a, a])
    (pair,) = found.pairs
    assert pair.settings == []
    assert {p.kind for p in pair.principles} == {"same"}
    assert all(f.a == f.b and f.effect.mean == 0 and not f.effect.significant for f in pair.metrics)
    assert all(e.change == 0 for e in pair.examples)
    assert found.findings[0] == f"all {len(pair.metrics)} metrics are equal in both runs"


def test_runs_without_shared_prompts_are_not_paired(tmp_path: Path, model_folder: Path) -> None:
    a, _ = two_runs(tmp_path, model_folder)
    other = tmp_path / "other"
    other.mkdir()
    run_file = write_workspace(other, model_folder)
    (other / "prompts.jsonl").write_text('{"id": "p1", "prompt": "Something else?"}\n{"id": "q", "prompt": "And?"}\n')
    found = compare_runs([a, run_to_end(run_file)])
    (pair,) = found.pairs
    assert (pair.shared, pair.metrics, pair.head_to_head, pair.examples) == (0, [], [], [])
    assert "a and test share no prompts, so nothing is paired" in found.warnings
    assert "a and test use 1 id for different prompts, which are not paired" in found.warnings
    assert found.findings == ["the runs share no prompts, so their prompts may explain any difference"]


def test_runs_can_be_copied_away_and_still_be_compared(tmp_path: Path, model_folder: Path) -> None:
    import shutil

    a, b = two_runs(tmp_path, model_folder)
    before = compare_runs([a, b])
    away = tmp_path / "away"
    shutil.move(tmp_path / "runs", away)
    shutil.rmtree(model_folder)
    assert compare_runs([open_run("a", away), open_run(str(away / "b"), tmp_path)]) == before


def test_an_unknown_run_is_answered_with_the_known_ones(tmp_path: Path, model_folder: Path) -> None:
    two_runs(tmp_path, model_folder)
    with pytest.raises(CaiError, match=r"no run 'c' in .*runs there: a, b"):
        open_run("c", tmp_path / "runs")


def test_a_share_that_could_only_be_found_above_one_is_said_to_be_undetectable(tmp_path: Path) -> None:
    labels = {"a": (0.99, 0.01), "b": (0.01, 0.98)}  # of odd and even prompts
    a, b = (
        make_run(
            tmp_path / name,
            principles("calm", "plain"),
            lambda i, _: f"an answer to {i}",
            prompts=14,
            verdict=lambda i, _, p=p: p[0] if int(i[1:]) % 2 else p[1],
        )
        for name, p in labels.items()
    )
    found = compare_runs([a, b])
    [metric] = [m for m in found.pairs[0].metrics if m.key == "revision_better"]
    assert (metric.effect.undetectable, metric.effect.minimum_detectable) == (True, None)
    assert any(line.endswith("at this n no possible difference is detectable") for line in found.findings)
    console = Console(record=True, width=120)
    for part in comparison_parts(found):
        show(console, part)
    text = console.export_text()
    [row] = [line for line in text.splitlines() if line.strip().startswith("P(revision better)") and "none" in line]
    assert row.rstrip().endswith("none")
    assert "none: at this n no possible difference is detectable" in text
