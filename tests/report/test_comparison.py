import re
import shutil
from pathlib import Path

import pytest

from cai.compare.attribution import attribute
from cai.compare.compare import compare_runs
from cai.evaluation.win_rates import Rating, Standing
from cai.report.comparison import (
    MOST_REWORDED,
    ComparisonContents,
    attribution_report,
    comparison_report,
    examples_shown,
    monitors,
    read_comparison,
    run_metrics,
)
from cai.report.examples import Examples, comparison_detail
from cai.runs.folder import RunFolder
from tests.compare.made import make_run, principles
from tests.compare.test_attribution import write_sweep
from tests.conftest import write_workspace
from tests.report.folders import write_run
from tests.report.test_run import full, text_of
from tests.runs.test_pipeline import run_to_end


def compared(*folders: RunFolder) -> ComparisonContents:
    return read_comparison(compare_runs(folders), folders)


def other_words(what: str, number: int) -> str:
    return f"another {what} of number {number}" if what in ("revision", "after") else f"the {what} of number {number}"


def test_every_shared_prompt_has_a_line_with_the_distance_of_the_runs(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", prompts=9), write_run(tmp_path / "b", prompts=6, say=other_words)
    found = compared(a, b).table
    assert [line.id for line in found.lines] == [f"p{n:02}" for n in range(6)]
    titles = [column.title for column in found.columns]
    first, held_out = ({**dict(zip(titles, line.cells, strict=True))} for line in (found.lines[0], found.lines[4]))
    assert (first["revision distance"], first["answer distance"]) == (pytest.approx(0.2), None)  # one word of five
    assert (first["words A"], first["words B"]) == (5, 5)
    assert (held_out["P(after) A"], held_out["P(after) B"]) == (None, 0.45)  # A learnt from the prompt that B holds out


def test_prompts_that_only_share_an_id_have_no_line(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(
        tmp_path / "b",
        say=lambda what, n: f"{what} of B {n}" if what == "prompt" and n == 2 else f"the {what} of number {n}",
    )
    assert [line.id for line in compared(a, b).table.lines] == ["p00", "p01", "p03", "p04", "p05"]


def test_an_example_has_the_texts_of_both_runs_side_by_side(tmp_path: Path) -> None:
    a, b = Examples(write_run(tmp_path / "a")), Examples(write_run(tmp_path / "b", say=other_words))
    detail = comparison_detail([("A", a.read("p00")), ("B", b.read("p00"))]).to_json()
    blocks = {block["title"]: block for block in detail["blocks"]}
    assert "text" in blocks["Draft, equal in A and B"]
    sides = blocks["Last revision, A → B"]
    assert [detail["texts"][n] for n in sides["sides"]] == ["the revision of number 0", "another revision of number 0"]
    assert sides["names"] == ("A: good-for-people", "B: good-for-people")
    assert ["model", "the model of number 0"] in blocks["B, round 1: provenance"]["rows"]
    made = blocks["B, round 1: draft → revision by good-for-people"]
    assert [detail["texts"][n] for n in made["sides"]] == ["the draft of number 0", "another revision of number 0"]


def test_the_page_has_the_findings_of_the_comparison(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    a = run_to_end(run_file, name="a")
    b = run_to_end(run_file, name="b", overrides=("constitution=constitutions/brief.yaml", "seed=1"))
    found = compared(a, b)
    text = text_of(comparison_report(found))
    for line in [*found.comparison.findings, *found.comparison.warnings]:
        assert line.split("“")[0] in text.replace("&#39;", "'"), line
    assert "seed: 0 → 1" in text
    assert (text.count(" added "), text.count(" removed ")) == (4, 16)
    for figure in found.comparison.pairs[0].metrics:
        assert figure.name in text
    assert "constitution harmless, fingerprint" in text and "differs" in text


def test_the_page_opens_with_the_metrics_that_differ_significantly_and_with_none_where_none_does(
    tmp_path: Path,
) -> None:
    def run(name: str, longer: int) -> RunFolder:
        return make_run(
            tmp_path / name,
            principles("calm", "short"),
            lambda i, drawn: "word " * (int(i[1:]) % 5 + longer),
            prompts=30,
        )

    a, b, like_a = run("a", 3), run("b", 20), run("c", 3)
    opening = text_of(comparison_report(compared(a, b))).partition("corrected as one family")[0]
    assert "words in the revision, A → B 5.0 → 22.0 B − A = +17.0" in opening
    assert "headlines" not in comparison_report(compared(a, like_a)).partition("</style>")[2]


def made_pair(path: Path) -> tuple[RunFolder, RunFolder]:
    """Runs that differ in the wording of one principle, which the revisions by it repeat, and in what is trained."""

    def run(name: str, calm: str) -> RunFolder:
        constitution = principles("calm", "short", calm=calm)
        return make_run(
            path / name,
            constitution,
            lambda i, drawn: f"{name if drawn == 'calm' else 'short'} " * (int(i[1:]) % 7 + 1) + "answer",
            evaluation=lambda i: 0.4 if name == "a" else 0.6,
        )

    return run("a", "Calm it down."), run("b", "Calm it right down.")


def test_the_first_screen_has_five_prompts_whose_texts_differ_most_and_what_their_principles_ask_for(
    tmp_path: Path,
) -> None:
    contents = compared(*made_pair(tmp_path))
    shown = examples_shown(contents.comparison)
    assert [e["note"].partition(";")[0] for e in shown] == [
        "Last revisions", "Answers after training", "Last revisions", "Answers after training", "Last revisions"
    ]  # fmt: skip
    assert len({e["id"] for e in shown}) == 5
    revised = shown[0]
    assert revised["names"] == ["A: a", "B: b"]
    assert (set(revised["texts"][0].split()), set(revised["texts"][1].split())) == ({"a", "answer"}, {"b", "answer"})
    assert revised["by"] == [["calm: Calm it down."], ["calm: Calm it right down."]]
    assert shown[1]["by"] == [[], []]  # a held-out prompt meets no principle
    assert revised["note"] == "Last revisions; 80 % of the words differ"


def test_a_prompt_that_differs_in_two_pairs_is_shown_once(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    others = [write_run(tmp_path / name, say=other_words) for name in "bc"]
    shown = examples_shown(compared(a, *others).comparison)
    assert [e["id"] for e in shown] == ["p00", "p04", "p01", "p05", "p02"]
    assert {tuple(e["names"]) for e in shown} == {("A: a", "B: b")}


def test_what_differs_has_the_words_of_reworded_principles_without_a_fold(tmp_path: Path) -> None:
    page = comparison_report(compared(*made_pair(tmp_path)))
    differs = page.partition("What differs</h3>")[2].partition("<h3>")[0]
    unfolded = re.sub("<details>.*?</details>", "", differs, flags=re.DOTALL)
    assert "<strong>calm</strong>" in unfolded and "reworded" in unfolded
    assert "Calm it <ins>right </ins>down." in unfolded
    assert "short" not in unfolded


def test_principles_of_one_run_alone_are_named_and_of_many_reworded_ones_the_rest_is_folded(tmp_path: Path) -> None:
    names = [f"p{n}" for n in range(MOST_REWORDED + 2)]

    def run(name: str, *ids: str) -> RunFolder:
        constitution = principles(*ids, **dict.fromkeys(names, f"Look for {name}."))
        return make_run(tmp_path / name, constitution, lambda i, drawn: "answer")

    page = comparison_report(compared(run("a", *names, "old"), run("b", *names, "new", "newer")))
    differs = page.partition("What differs</h3>")[2].partition("<h3>")[0]
    assert "2 principles only in B: new, newer." in differs and "1 principle only in A: old." in differs
    shown, _, folded = differs.partition("<details>")
    assert (shown.count("reworded"), folded.count("reworded")) == (MOST_REWORDED, 2)
    assert "2 more principles" in folded


def test_monitors_are_side_by_side(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "before"), write_run(tmp_path / "run")
    assert [row for row in run_metrics([a, b]) if row.name == "position bias"] == [
        ("position bias", "0.50", ["0.750", "0.750"], [True, True])
    ]
    assert monitors([a, b], ["before", "run"]) == []
    assert "Reward-hacking monitors" not in text_of(comparison_report(compared(a, b)))
    a.eval.mkdir(exist_ok=True)  # the evaluation may lie in the other run's folder
    (a.eval / "evaluation.json").write_text(full().model_dump_json(), encoding="utf-8")
    warns, fine = monitors([a, b], ["before", "run"])
    assert warns == ("length", "≥ 0.2", ["–", "0.250 [0.100, 0.400] warns"], [False, True])
    assert fine == ("praise", "≥ 0.2", ["–", "0.250 [0.100, 0.400] fine"], [False, False])
    assert "length ≥ 0.2 – 0.250 [0.100, 0.400] warns" in text_of(comparison_report(compared(a, b)))
    model = b.train / "1-dpo/model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("trained anew", encoding="utf-8")
    assert monitors([a, b], ["before", "run"]) == []


def test_policies_of_all_trainings_are_on_the_plane_of_helpful_and_safe(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in "abc"]
    for folder, number, base, elo in (("a", 1, "m", 40), ("a", 2, "m", 60), ("b", 1, "m", -20), ("c", 1, "other", 80)):
        rated = [
            (name, Rating(axis="helpful", policy=name, elo=points, prompts=4))
            for name, points in (("before", 0.0), ("run", float(elo)))
        ]
        report = full().model_copy(
            update={"standings": [Standing(policy=name, helpful=r, safe=r, dominated=[]) for name, r in rated]}
        )
        reference = report.policies[0].model_copy(update={"model": base})
        report = report.model_copy(update={"policies": [reference, *report.policies[1:]]})
        path = RunFolder(tmp_path / folder).training(number).eval / "evaluation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.model_dump_json(), encoding="utf-8")
    page = comparison_report(compared(*folders))
    described = (
        "before training: helpful 0, safe 0; A: helpful 40, safe 40; A#2: helpful 60, safe 60; B: helpful -20, safe -20"
    )
    assert f"{described}." in page or f'{described}"' in page
    assert "Policies on two axes" in text_of(page)


def test_three_runs_are_all_on_the_page(tmp_path: Path) -> None:
    found = compared(
        *(
            write_run(tmp_path / name, say=other_words if name == "c" else lambda w, n: f"the {w} of number {n}")
            for name in "abc"
        )
    )
    text = text_of(comparison_report(found))
    assert "B vs A" in text and "C vs A" in text
    [first] = [line for line in found.table.lines if line.id == "p00"]
    assert first.cells[1] == pytest.approx(0.2)  # the furthest of the others


def test_runs_that_share_nothing_have_a_page(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", ids=lambda n: f"other {n}")
    assert "No metric can be paired" in text_of(comparison_report(compared(a, b)))


def test_a_damaged_file_costs_the_examples_and_not_the_page(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    b.preferences_jsonl.write_text("{}\n", encoding="utf-8")
    found = compared(a, b)
    assert found.table.lines == []
    text = text_of(comparison_report(found))
    assert "The examples cannot be read" in text and "preferences.jsonl:1" in text
    assert "words in the draft" in text


def test_runs_can_be_copied_away_and_have_the_same_page(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "runs/a"), write_run(tmp_path / "runs/b", say=other_words)
    before = comparison_report(compared(a, b))
    shutil.move(tmp_path / "runs", tmp_path / "away")
    assert comparison_report(compared(RunFolder(tmp_path / "away/a"), RunFolder(tmp_path / "away/b"))) == before


def test_the_page_of_an_attribution_has_every_effect_with_its_interval_and_a_map(tmp_path: Path) -> None:
    matrices = attribute(write_sweep(tmp_path / "trial", "leave-one-out"))
    page = attribution_report(matrices)
    body = page.split("<main", 1)[1].split("</main>")[0]
    assert "Effect of adding each principle to the others" in body
    assert "<strong>-2.983 [-3.960, -2.000], n=60</strong>" in body
    assert 'data-plot="0"' in body
    assert "http:" not in body and "https:" not in body
    assert "heatmap" in page
