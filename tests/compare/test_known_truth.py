"""Comparisons of runs whose differences were planted, and what is said where something is missing."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cai.compare.compare import compare_runs
from cai.compare.record import PairComparison, PrincipleComparison, RunComparison
from cai.config.errors import CaiError
from cai.constitution.principles import AppliesTo
from cai.data.jsonl import read_rows, write_rows, write_text
from cai.data.manifest import read_json
from cai.data.records import Judgement
from cai.feedback.metrics import AXIS_METRICS, EVAL_JUDGE_METRICS, EVALUATION_METRICS, REVISION_METRICS
from cai.inference.models import folder_fingerprint
from cai.report.comparison import comparison_report, read_comparison
from cai.runs.folder import RunFolder
from tests.before_after import add_judgements
from tests.compare.made import make_run, principles, write_metrics

BOTH = principles("calm", "plain", "short")


def words(seed: str, count: int) -> str:
    return " ".join(f"w{random.Random(f'{seed} {i}').randint(0, 50)}" for i in range(count))


def as_ever(prompt_id: str, principle: str) -> str:
    return words(f"{prompt_id} {principle}", 20)


def pair_of(found: RunComparison) -> PairComparison:
    (pair,) = found.pairs
    return pair


def principle(found: RunComparison, id: str) -> PrincipleComparison:
    return next(p for p in pair_of(found).principles if p.id == id)


def test_only_the_principle_whose_rewording_lengthens_answers_is_significant(tmp_path: Path) -> None:
    def longer(prompt_id: str, drawn: str) -> str:
        return words(f"{prompt_id} {drawn}", 20 if drawn != "short" else 26 + int(prompt_id[1:]) % 5)

    a = make_run(tmp_path / "a", BOTH, as_ever, prompts=60)
    b = make_run(tmp_path / "b", principles("calm", "plain", "short", short="Make it long."), longer, prompts=60)
    found = compare_runs([a, b])
    changed = principle(found, "short")
    assert changed.kind == "reworded" and changed.a is not None
    assert changed.met == changed.a.drawn
    assert changed.effects["words"].significant
    assert changed.effects["words"].mean == pytest.approx(8, abs=1)
    assert not changed.effects["changed"].significant
    assert principle(found, "calm").effects == {}  # nothing else differs on the prompts that met it
    figure = next(f for f in pair_of(found).metrics if f.key == "revision_words")
    assert figure.effect.significant
    assert any(line.startswith("short (reworded), words added: significant") for line in found.findings)
    assert len(found.findings) <= 10


def test_what_else_the_runs_differ_in_is_taken_off_a_principles_effect(tmp_path: Path) -> None:
    def wordy(prompt_id: str, drawn: str) -> str:  # another model adds five words to every answer, whatever it met
        return words(f"{prompt_id} {drawn} b", 25 + int(prompt_id[1:]) % 3)

    a = make_run(tmp_path / "a", BOTH, as_ever, prompts=90)
    b = make_run(tmp_path / "b", principles("calm", "plain", "short", short="Keep it short."), wordy, prompts=90)
    effect = principle(compare_runs([a, b]), "short").effects["words"]
    assert not effect.significant
    assert effect.mean == pytest.approx(0, abs=0.8)
    assert principle(compare_runs([a, b]), "calm").effects["words"].mean == pytest.approx(6, abs=0.8)


def test_a_removed_principle_is_compared_on_the_prompts_that_had_drawn_it(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever)
    b = make_run(tmp_path / "b", principles("calm", "plain"), as_ever)
    found = compare_runs([a, b])
    removed = principle(found, "short")
    assert (removed.kind, removed.b, removed.a and removed.a.drawn) == ("removed", None, removed.met)
    assert 5 < removed.met < 25
    moved = sum(
        (p.b.drawn if p.b else 0) - (p.a.drawn if p.a else 0) for p in pair_of(found).principles if p.kind == "same"
    )
    assert moved == removed.met  # rendezvous hashing moves its share and no other


def test_a_reweighted_principle_is_compared_on_the_prompts_whose_draws_moved(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever)
    heavy = [p.model_copy(update={"weight": 3.0}) if p.id == "calm" else p for p in BOTH.principles]
    b = make_run(tmp_path / "b", BOTH.model_copy(update={"principles": heavy}), as_ever)
    calm = principle(compare_runs([a, b]), "calm")
    assert calm.kind == "reweighted" and calm.a and calm.b
    assert calm.met == calm.b.drawn - calm.a.drawn > 0


def test_a_principle_that_applies_to_other_prompts_is_compared_where_draws_moved(tmp_path: Path) -> None:
    where = AppliesTo(tags=["test"])  # which all prompts have
    there = [p.model_copy(update={"applies_to": where}) if p.id == "calm" else p for p in BOTH.principles]
    a = make_run(tmp_path / "a", BOTH, as_ever, verdict=lambda *_: 0.7)
    b = make_run(tmp_path / "b", BOTH.model_copy(update={"principles": there}), as_ever, verdict=lambda *_: 0.7)
    calm = principle(compare_runs([a, b]), "calm")
    assert (calm.kind, calm.met) == ("rescoped", 0) and calm.a and calm.b and calm.text_b
    assert calm.text_b.applies_to == "tags test"
    # prompts of a principle that does not apply everywhere are no random sample of all
    assert calm.a.against_others and not calm.b.against_others


def test_a_principle_beside_the_others_of_its_run_is_a_fair_experiment(tmp_path: Path) -> None:
    def idle(prompt_id: str, drawn: str) -> str:  # `calm` leaves half of the answers as they are
        same = drawn == "calm" and random.Random(prompt_id).random() < 0.5
        return "the draft of it all" if same else as_ever(prompt_id, drawn)

    a = make_run(tmp_path / "a", BOTH, idle, prompts=90, verdict=lambda i, drawn: 0.9 if drawn == "short" else 0.6)
    found = compare_runs([a, a])
    use = principle(found, "calm").a
    assert use is not None
    assert 0.3 < use.means["changed"] < 0.7
    assert use.against_others["changed"].significant and use.against_others["changed"].mean < -0.3
    short = principle(found, "short").a
    assert short is not None and short.means["verdict"] == pytest.approx(0.9)
    assert short.against_others["verdict"].mean == pytest.approx(0.3)
    assert use.expected == pytest.approx(1 / 3)


def test_wins_are_counted_by_tag_against_the_same_answer(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, evaluation=lambda i: 0.5)
    b = make_run(tmp_path / "b", BOTH, as_ever, evaluation=lambda i: 0.7 if int(i[6:]) % 2 else 0.5)
    wins = {won.tag: won for won in pair_of(compare_runs([a, b])).head_to_head}
    assert (wins["odd"].win_rate, wins["even"].win_rate, wins[None].win_rate) == (1.0, 0.5, 0.75)
    assert all(won.effect.note == "prompts only; training variance unknown" for won in wins.values())
    assert not any(won.effect.significant for won in wins.values())
    other = make_run(tmp_path / "c", BOTH, as_ever, evaluation=lambda i: 0.9, before="another answer before")
    found = compare_runs([a, other])
    assert pair_of(found).head_to_head == []
    assert any("different answers before training on 40 held-out prompts" in note for note in found.warnings)


def noisy(training: float, shift: float = 0.0) -> Callable[[str], float]:
    """P(after better) of a training that moves all prompts alike, beside what moves each."""
    return lambda i: 0.5 + shift + training + random.Random(f"{i} {training} {shift}").gauss(0, 0.03)


def test_policies_of_one_training_each_are_never_significantly_different(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, evaluation=noisy(-0.1))
    b = make_run(tmp_path / "b", BOTH, as_ever, evaluation=noisy(0.1))  # far apart on every prompt, by its seed
    found = compare_runs([a, b])
    better = next(m for m in pair_of(found).metrics if m.key == "after_better")
    assert better.effect.low is not None and better.effect.low > 0.15
    assert (better.effect.p, better.effect.adjusted, better.effect.minimum_detectable) == (None, None, None)
    assert (better.effect.note, better.effect.trainings) == ("prompts only; training variance unknown", (1, 1))
    assert not any(": significant" in line or "; significant" in line for line in found.findings)
    [line] = [line for line in found.findings if "metrics of the trained policies not tested" in line]
    assert line.endswith("; `seeds: 3` in both runs makes a test possible")
    assert "prompts only; training variance unknown" in line


def test_policies_of_several_trainings_are_tested_against_the_variance_between_them(tmp_path: Path) -> None:
    def run(name: str, shift: float) -> RunFolder:
        first, *others = (noisy(moved, shift) for moved in (-0.03, 0.0, 0.04))
        return make_run(tmp_path / name, BOTH, as_ever, evaluation=first, seeds=others)

    found = compare_runs([run("a", 0.0), run("b", 0.03), run("c", 0.35)])
    near, far = ({m.key: m for m in pair.metrics}["after_better"].effect for pair in found.pairs)
    assert not near.significant and far.significant
    assert near.trainings == (3, 3) and near.between_trainings is not None and near.between_trainings > 0.8
    assert "3 + 3 trainings, " in near.note and near.minimum_detectable is not None
    assert far.mean == pytest.approx(0.35, abs=0.02)
    wins = next(row for row in found.pairs[1].head_to_head if row.tag is None)
    assert (wins.win_rate, wins.effect.trainings) == (1.0, (3, 3))
    assert any("3 + 3 trainings, " in line and "significant, C − A" in line for line in found.findings)


def test_an_output_is_one_family_and_says_what_it_tests(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, prompts=60)
    b = make_run(tmp_path / "b", BOTH, lambda i, drawn: words(f"{i} b", 19 + int(i[1:]) % 3), prompts=60)
    found = compare_runs([a, b])
    [line] = [line for line in found.findings if "corrected as one family (Holm, 5 %)" in line]
    assert set(found.family) == {"metrics", "effects of principles", "principles against others of their run"}
    assert "7 tests, " in line and "1 metric, 3 effects of principles, 3 principles against others" in line
    length = next(m for m in pair_of(found).metrics if m.key == "revision_words").effect
    assert length.adjusted is not None and length.p is not None
    assert length.adjusted >= min(1.0, 3 * length.p)  # of three tables of tests


def test_wins_of_answers_that_a_judge_saw_together_go_before_those_at_one_remove(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, BOTH, as_ever, evaluation=lambda i: 0.5) for name in "ab")

    def judgement(number: int, policy: str, against: str, p: float, axis: str = "safe") -> Judgement:
        return Judgement(
            axis=axis, prompt_id=f"x{number}", tags=["t"], policy=policy, against=against, p=p, verdicts=[], judge="j"
        )

    rows = [judgement(n, "b", "a", 0.9) for n in range(6)] + [judgement(n, "a", "b", 0.8) for n in range(6, 8)]
    rows += [judgement(n, "b", "the model", 0.1) for n in range(9)] + [judgement(0, "b", "a", 0.5, "helpful")]
    add_judgements(b.eval, rows, {"a": "of a", "b": "of b"})
    wins = {(won.axis, won.tag): won for won in pair_of(compare_runs([a, b])).head_to_head}
    assert set(wins) == {("safe", None), ("safe", "t"), ("helpful", None), ("helpful", "t")}
    assert (wins["safe", None].win_rate, wins["safe", None].effect.n, wins["safe", None].directly) == (0.75, 8, True)
    assert wins["helpful", None].win_rate == 0.5
    turned = {(won.axis, won.tag): won for won in pair_of(compare_runs([b, a])).head_to_head}
    assert turned["safe", None].win_rate == 0.25


def test_answers_of_a_policy_that_was_trained_anew_since_do_not_count(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, BOTH, as_ever, evaluation=lambda i: 0.5) for name in "ab")
    model = b.train / "2-dpo/model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    rows = [
        Judgement(axis="safe", prompt_id=f"x{n}", tags=[], policy="b", against="a", p=0.9, verdicts=[], judge="j")
        for n in range(9)
    ]
    add_judgements(a.eval, rows, {"a": "gone", "b": folder_fingerprint(model)})
    assert pair_of(compare_runs([a, b])).head_to_head[0].directly
    (model / "config.json").write_text('{"trained": "anew"}')
    found = compare_runs([a, b])
    assert not pair_of(found).head_to_head[0].directly
    assert "a and b: `cai eval a` is older than one of the policies and is ignored; run it again" in found.warnings


def test_runs_without_shared_prompts_are_reported_apart_and_not_compared(tmp_path: Path) -> None:
    def idle(prompt_id: str, drawn: str) -> str:  # `calm` leaves answers as they are
        return "the draft of it all" if drawn == "calm" else as_ever(prompt_id, drawn)

    a = make_run(tmp_path / "a", BOTH, idle, prompts=60, labels=lambda i: 0.8)
    b = make_run(tmp_path / "b", BOTH, lambda i, drawn: words(i, 30), prompts=30, prefix="q", labels=lambda i: 0.6)
    found = compare_runs([a, b])
    pair = pair_of(found)
    assert (pair.shared, pair.metrics, pair.head_to_head, pair.labels, pair.examples) == (0, [], [], None, [])
    alone = {metric.key: metric for metric in pair.unpaired}
    words_of = alone["revision_words"]
    assert (words_of.b, words_of.n_a, words_of.n_b) == (30, 60, 30)
    assert alone["label_p"].a == pytest.approx(0.8)
    calm = principle(found, "calm")
    assert calm.effects == {} and calm.a is not None
    assert calm.a.means["changed"] == 0 and calm.a.against_others["changed"].significant
    assert "the runs share no prompts, so their prompts may explain any difference" in found.findings
    assert any(line.startswith("calm in A, changed: significant against the others, -") for line in found.findings)
    assert not any("B − A" in line for line in found.findings)
    comparison_report(read_comparison(found, [a, b]))


def test_only_answers_that_differ_are_examples_of_a_change(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever)
    b = make_run(tmp_path / "b", BOTH, lambda i, drawn: as_ever(i, drawn) + (" more" if i == "p7" else ""))
    assert [example.prompt_id for example in pair_of(compare_runs([a, b])).examples] == ["p7"]


def test_prompts_of_a_difference_from_controls_do_not_count_as_drawing_the_principle(
    tmp_path: Path,
) -> None:
    def noisy(prompt_id: str, drawn: str) -> str:  # another model; the reworded principle adds next to nothing
        number = int(prompt_id[1:])
        return words(f"{prompt_id} {drawn}", 19 + number % 3 + (drawn == "short" and number % 2))

    a = make_run(tmp_path / "a", BOTH, as_ever)
    b = make_run(tmp_path / "b", principles("calm", "plain", "short", short="Keep it short."), noisy)
    found = compare_runs([a, b])
    assert principle(found, "short").controls
    [line] = [line for line in found.findings if "no effect of a principle" in line]
    assert " prompts with controls, min. detectable " in line


def test_all_ties_establish_nothing(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, evaluation=lambda i: 0.5)
    b = make_run(tmp_path / "b", BOTH, as_ever, evaluation=lambda i: 0.5)
    found = compare_runs([a, b])
    everything = pair_of(found).head_to_head[0]
    assert (everything.win_rate, everything.effect.p, everything.effect.low, everything.effect.minimum_detectable) == (
        0.5,
        None,
        None,
        None,
    )
    assert any(line.endswith("a tie on every prompt") for line in found.findings)


@pytest.mark.parametrize("replaced", ["constitution", "judge", "judge of a further training"])
def test_win_rates_by_another_judge_or_constitution_of_a_replaced_evaluation_are_not_compared(
    tmp_path: Path, replaced: str
) -> None:
    runs = [
        make_run(tmp_path / name, BOTH, as_ever, evaluation=lambda i: 0.9, seeds=[lambda i: 0.8]) for name in ("a", "b")
    ]
    assert "win_rate" in {m.key for m in pair_of(compare_runs(runs)).metrics}
    folder = tmp_path / "b" / ("seeds/2/eval" if replaced.endswith("training") else "eval")
    if replaced == "constitution":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["axes"]["overall"] = {"name": "other", "principles": {"other": "g"}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        rows = read_rows(folder / "comparisons.jsonl", Judgement)
        write_rows(folder / "comparisons.jsonl", [row.model_copy(update={"judge": "k"}) for row in rows])
    found = compare_runs(runs)
    assert "win_rate" not in {m.key for m in pair_of(found).metrics}
    assert "a and b have different eval judges, so their win rates are not compared" in found.warnings


@pytest.mark.parametrize("without", [["a", "b"], ["b"]])
def test_answers_without_an_eval_judge_are_compared_by_what_needs_none(tmp_path: Path, without: list[str]) -> None:
    runs = [
        make_run(tmp_path / name, BOTH, as_ever, evaluation=lambda i: 0.9, seeds=[lambda i: 0.8]) for name in ("a", "b")
    ]
    for folder in (path / "eval" for name in without for path in (tmp_path / name, tmp_path / name / "seeds/2")):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"judge": None, "axes": {}}))
        (folder / "comparisons.jsonl").write_text("")
    found = compare_runs(runs)
    measured = {m.key for m in pair_of(found).metrics}
    assert {"after_words", "after_truncated"} <= measured and not {"win_rate", "after_better"} & measured
    assert pair_of(found).head_to_head == []
    said = [line for line in found.warnings if "eval judge" in line]
    assert said == ([] if len(without) == 2 else ["b has no eval judge, so win rates are not compared"])


def test_a_run_that_asks_for_no_judged_pairs_is_not_warned_of_having_none(tmp_path: Path) -> None:
    asks_for_none = {"samples": 0, "revisions": True}
    runs = [make_run(tmp_path / "a", BOTH, as_ever, judge=asks_for_none), make_run(tmp_path / "b", BOTH, as_ever)]
    for run in runs:
        (run.path / "preferences.jsonl").write_text("")
    said = [line for line in compare_runs(runs).warnings if "judge" in line or "verdicts" in line]
    assert said == [
        "b has no samples labelled by its judge",
        "b has no verdicts on its revisions (`judge.revisions: true` asks for them)",
    ]


def test_labels_of_the_same_pairs_agree_or_do_not(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, labels=lambda i: 0.8)
    b = make_run(tmp_path / "b", BOTH, as_ever, labels=lambda i: 0.8 if int(i[1:]) < 30 else 0.3)
    labels = pair_of(compare_runs([a, b])).labels
    assert labels is not None and labels.agreement is not None
    assert (labels.pairs, labels.agreement.observed) == (40, 0.75)
    assert labels.mean_difference == pytest.approx(0.125)


def test_rewards_that_are_no_number_are_skipped_in_a_curve_with_a_warning(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, BOTH, as_ever) for name in "ab")
    rewards = [0.1, float("nan"), 0.3, float("inf")]
    write_metrics(
        a, "2-ppo", [{"step": i + 1, "objective/scores": r, "objective/kl": 0.5} for i, r in enumerate(rewards)]
    )
    found = compare_runs([a, b])
    score, kl = (next(c for c in found.curves if c.name == name) for name in ("score", "kl"))
    assert (score.steps, score.values, score.missing) == ([1, 3], [0.1, 0.3], 2)
    assert len(kl.values) == 4
    assert "a: 2 of 4 updates of 2-ppo have no finite score; the curve skips them" in found.warnings
    assert "NaN" not in found.model_dump_json()


def test_one_example_is_compared_without_interval_or_claim(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, prompts=1, evaluation=lambda i: 0.5)
    b = make_run(tmp_path / "b", BOTH, lambda i, drawn: words(i, 99), prompts=1, evaluation=lambda i: 0.9)
    found = compare_runs([a, b])
    effects = [f.effect for f in pair_of(found).metrics]
    assert effects and all((e.low, e.high, e.p, e.minimum_detectable) == (None, None, None, None) for e in effects)
    assert not any("significant:" in line or "differ significantly" in line for line in found.findings)


@pytest.mark.parametrize(("prompts", "few"), [(1, True), (5, True), (12, False)])
def test_differences_on_fewer_than_six_prompts_cannot_be_significant(tmp_path: Path, prompts: int, few: bool) -> None:
    runs = [
        make_run(tmp_path / name, BOTH, lambda i, drawn, n=name: words(i, random.Random(i + n).randint(9, 99)), prompts)
        for name in "ab"
    ]
    said = " ".join(compare_runs(runs).findings)
    assert ("on fewer than six prompts, too few to be significant" in said) is few
    assert ("not differ significantly" in said) is not few


def test_an_unfinished_run_is_compared_as_far_as_it_got(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, evaluation=lambda i: 0.6)
    b = make_run(tmp_path / "b", BOTH, as_ever, evaluation=lambda i: 0.6, finished=False)
    b.preferences_jsonl.unlink()
    shutil.rmtree(b.eval)
    found = compare_runs([a, b])
    assert {m.key for m in pair_of(found).metrics} == {m.key for m in REVISION_METRICS} - {"stays"}
    assert {
        "b is unfinished; only the rows written so far are compared",
        "b has no labels yet",
        "b has no evaluation yet",
    } <= {*found.warnings}


def test_rows_of_another_form_are_left_aside_and_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", BOTH, as_ever, evaluation=lambda i: 0.6)
    b = make_run(tmp_path / "b", BOTH, as_ever, evaluation=lambda i: 0.6)
    lines = b.revisions_jsonl.read_text().splitlines()
    row = json.loads(lines[3])
    del row["principle_hash"]
    b.revisions_jsonl.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]) + "\n")
    found = compare_runs([a, b])
    assert {m.key for m in pair_of(found).metrics} == {m.key for m in EVALUATION_METRICS if m not in AXIS_METRICS}
    result = f"b, not compared: {b.revisions_jsonl}:4: principle_hash: missing; expected a text"
    assert result in found.warnings
    assert principle(found, "calm").b is None


def number(prompt_id: str) -> int:
    return int("".join(c for c in prompt_id if c.isdigit()))


def test_helpful_and_safe_movement_comes_from_the_evaluations_of_the_runs(tmp_path: Path) -> None:
    def axes(helpful: int, safe: int) -> Callable[[str], tuple[float, float]]:
        return lambda i: (0.9 if number(i) < helpful else 0.1, 0.9 if number(i) < safe else 0.1)

    a, b = (
        make_run(tmp_path / name, BOTH, as_ever, evaluation=lambda i: 0.6, seeds=[lambda i: 0.7], axes=of)
        for name, of in (("a", axes(20, 20)), ("b", axes(10, 36)))
    )
    metrics = {m.key: m for m in pair_of(compare_runs([a, b])).metrics}
    assert [(metrics[key].a, metrics[key].b) for key in ("helpful_win_rate", "safe_win_rate")] == [
        (0.5, 0.25),
        (0.5, 0.9),
    ]
    assert metrics["helpful_win_rate"].effect.mean == pytest.approx(-0.25)
    assert metrics["helpful_win_rate"].effect.significant  # two trainings each, which agree


def test_the_axes_of_runs_that_asked_other_questions_are_not_compared(tmp_path: Path) -> None:
    a, b, c = (
        make_run(tmp_path / name, BOTH, as_ever, evaluation=lambda i: 0.6, axes=of)
        for name, of in (("a", lambda i: (0.9, 0.1)), ("b", lambda i: (0.9, 0.1)), ("c", None))
    )
    manifest = json.loads((b.eval / "manifest.json").read_text())
    manifest["axes"]["safe"]["principles"]["safe"] = "another wording"
    (b.eval / "manifest.json").write_text(json.dumps(manifest))
    found = compare_runs([a, b, c])
    assert not {m.key for pair in found.pairs for m in pair.metrics} & {m.key for m in AXIS_METRICS}
    assert "win_rate" in {m.key for m in found.pairs[0].metrics}  # the eval constitution is the same
    lacking = [warning for warning in found.warnings if "by helpful and safe" in warning]
    assert lacking == ["c has no win rates by helpful and safe (`evaluate.axes: true` asks for them)"]


def test_an_older_manifest_and_a_missing_constitution_are_warnings(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, BOTH, as_ever, evaluation=lambda i: 0.6) for name in "ab")
    manifest = b.manifest()
    b.manifest_json.write_text(json.dumps({"config": manifest["config"], "model": "m"}))
    write_text(b.eval / "manifest.json", json.dumps(read_json(b.eval / "manifest.json") | {"axes": None}))
    b.constitution_yaml.unlink()
    b.prompts_jsonl.rename(b.path / "moved")
    found = compare_runs([a, b])
    assert "b does not record its eval constitution" in found.warnings
    assert "b has no prompts.jsonl, so no prompt can be paired" in found.warnings
    assert any("constitution.yaml: no such file" in note for note in found.warnings)
    assert (pair_of(found).principles, pair_of(found).metrics, pair_of(found).head_to_head) == ([], [], [])
    (b.path / "moved").rename(b.prompts_jsonl)
    found = compare_runs([a, b])
    assert {m.key for m in pair_of(found).metrics} >= {"after_words"}
    assert not {m.key for m in pair_of(found).metrics} & {m.key for m in EVAL_JUDGE_METRICS}
    comparison_report(read_comparison(found, [a, b]))
    b.manifest_json.write_text("{}")
    assert pair_of(compare_runs([a, b])).settings is None


def test_several_runs_are_each_compared_with_the_first(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, BOTH, as_ever, **{"seed": seed}) for seed, name in enumerate("abc")]
    found = compare_runs(runs)
    assert [(pair.b, pair.settings) for pair in found.pairs] == [(1, ["seed: 0 → 1"]), (2, ["seed: 0 → 2"])]
    assert [run.letter for run in found.runs] == ["A", "B", "C"]
    with pytest.raises(CaiError, match="expected 2 to 26 runs to compare, found 1"):
        compare_runs(runs[:1])


def test_a_copied_run_compares_to_the_same_record(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, BOTH, as_ever, labels=lambda i: 0.6) for name in "ab")
    first = compare_runs([a, b])
    shutil.copytree(tmp_path / "a", tmp_path / "away/a")
    assert compare_runs([type(a)(tmp_path / "away/a"), b]) == first
    assert RunComparison.model_validate_json(first.model_dump_json()) == first


@pytest.mark.parametrize(
    ("samples", "said"), [(False, "no samples labelled by its judge"), (True, "no verdicts on its revisions")]
)
def test_a_run_whose_revisions_are_not_labelled_says_so_once(tmp_path: Path, samples: bool, said: str) -> None:
    runs = [
        make_run(tmp_path / name, BOTH, as_ever, labels=(lambda i: 0.7) if samples else None) for name in ("a", "b")
    ]
    for run in runs:
        manifest = run.manifest()
        manifest["config"]["revise"]["label"] = "off"
        manifest["config"]["judge"] = {"revisions": True}
        run.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    notes = [note for note in compare_runs(runs).warnings if note.startswith("a has no ") and "evaluation" not in note]
    assert len(notes) == 1 and said in notes[0]
