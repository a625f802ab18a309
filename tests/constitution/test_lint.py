"""Each rule: what it points at, and what it leaves alone."""

import itertools
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.constitution.lint import ALIKE, CONTAINED, MAX_WORDS, MIN_SHARE, MIN_WORDS_UNRELATED, Finding, Rule, lint
from cai.constitution.lint_words import content, words
from cai.constitution.principles import TEXTS, load_constitution, starter
from tests.conftest import ROOT

SOURCES = {
    "id": "sources",
    "critique": "Point out every number in the answer that comes without a source.",
    "revision": "Rewrite the answer so that it gives the source of every number.",
    "judge": "Which answer gives more sources for its numbers?",
}
CALM = {
    "id": "calm",
    "critique": "Point out every word in the answer that sounds angry or excited.",
    "revision": "Rewrite the answer in a calm tone, with every angry word put calmly.",
    "judge": "Which answer keeps a calmer tone, with fewer angry words?",
}


def write(folder: Path, *principles: dict[str, Any]) -> Path:
    path = folder / "c.yaml"
    path.write_text(
        yaml.safe_dump({"name": "c", "principles": list(principles)}, sort_keys=False, width=1000), encoding="utf-8"
    )
    return path


def found(folder: Path, *principles: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(principle, rule, severity) of every finding."""
    return [(f.principle, f.rule, f.severity) for f in lint(write(folder, *principles))]


def of_text(folder: Path, text: str) -> list[Finding]:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return lint(path)


def test_a_question_of_a_principle_must_be_one_of_yes_or_no(tmp_path: Path) -> None:
    def asking(question: str) -> dict[str, Any]:
        return CALM | {"applies_to": {"question": question}}

    assert found(tmp_path, SOURCES, asking("Does the message ask for help with a quarrel?")) == []
    for question in ("What does the message ask for?", "Does the message ask for help with a quarrel"):
        assert found(tmp_path, SOURCES, asking(question)) == [("calm", "no-yes-no", "warning")]
    hidden = asking("Does the message ask for \u202ehelp?")
    assert ("calm", "hidden-character", "error") in found(tmp_path, SOURCES, hidden)


def test_a_constitution_without_a_general_principle_skips_prompts(tmp_path: Path) -> None:
    tagged = [p | {"applies_to": {"tags": ["x"]}} for p in (SOURCES, CALM)]
    assert found(tmp_path, *tagged) == [("sources", "no-general", "hint")]
    assert found(tmp_path, SOURCES, tagged[1]) == []


@pytest.mark.parametrize("path", sorted((ROOT / "constitutions").glob("*.yaml")), ids=lambda path: path.stem)
def test_nothing_is_wrong_with_a_shipped_constitution(path: Path) -> None:
    assert lint(path) == []


def test_nothing_is_wrong_with_a_starter_or_with_good_principles(tmp_path: Path) -> None:
    assert of_text(tmp_path, starter("mine")) == []
    assert found(tmp_path, SOURCES, CALM) == []


def test_every_rule_and_bound_is_documented_as_it_is() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cai/constitution").glob("lint*.py"))
    doc = (ROOT / "docs/constitutions.md").read_text(encoding="utf-8")
    rules = set(re.findall(r'"([a-z-]+)",\s+"(error|warning|hint)"', source))
    rules.discard(("error", "warning"))  # the severities themselves
    assert {rule for rule, _ in rules} == set(get_args(Rule))
    assert rules == set(re.findall(r"^\| `([a-z-]+)` \| (error|warning|hint) \|", doc, re.MULTILINE))
    assert len(rules) == 19
    for bound in (
        f"more than {MAX_WORDS} words",
        f"of {ALIKE} or more",
        f"holds {100 * CONTAINED:.0f} %",
        f"once in {1 / MIN_SHARE:.0f} times",
        f"fewer than {MIN_WORDS_UNRELATED}",
    ):
        assert bound in doc


def test_the_metrics_about_shipped_principles_are_theirs() -> None:
    longest, jaccard, contained = 0, 0.0, 0.0
    for path in sorted((ROOT / "constitutions").glob("*.yaml")):
        principles = load_constitution(path).principles
        longest = max(longest, *(len(words(getattr(p, f))) for p in principles for f in TEXTS))
        said = [content(" ".join(getattr(p, f) for f in TEXTS)) for p in principles]
        for a, b in itertools.combinations(said, 2):
            jaccard = max(jaccard, len(a & b) / len(a | b))
            contained = max(contained, len(a & b) / min(len(a), len(b)))
    doc = (ROOT / "docs/constitutions.md").read_text(encoding="utf-8")
    assert f"at most {longest} words" in doc
    assert f"reach {jaccard:.2f} and {100 * contained:.0f} %" in doc


def test_a_finding_has_a_place_a_reason_and_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path, SOURCES, {**CALM, "judge": "Which answer is calmer, answer A or the other one?"})
    (finding,) = lint(path)
    assert finding == Finding(
        file=str(path),
        line=10,
        principle="calm",
        rule="position",
        severity="warning",
        reason="judge refers to a position, “answer A”, but every pair is judged in both orders",
        suggestion="describe the better answer instead",
    )
    assert path.read_text(encoding="utf-8").splitlines()[9].strip().startswith("judge:")


@pytest.mark.parametrize(
    ("judge", "rules"),
    [
        ("Which answer has a calmer tone, A or B (A)?", ["position"]),
        ("Is the calm tone of answer 1 better than that of answer 2?", ["position", "no-choice"]),
        ("Is the first answer calmer in tone?", ["position", "no-choice"]),
        ("Choose the second response if its tone is calmer.", ["position"]),
        ("Which has the calmer tone, the former or the latter?", ["position"]),
        ("Which answer gives the right answer in a calm tone?", []),
        ("Which answer puts a calm word in its first sentence?", []),
        ("Which answers 2 questions in a calm tone?", []),
        ("Which is the answer I would give in a calm tone?", []),
        ("Is the tone of the answer calm?", ["no-choice"]),
        ("A calm tone is better.", ["no-choice"]),
        ("Choose the answer with the calmer tone.", []),
        ("Welche Antwort hat einen ruhigeren tone, also calm?", []),
    ],
)
def test_a_judge_is_to_choose_by_what_answers_say(tmp_path: Path, judge: str, rules: list[str]) -> None:
    assert [rule for _, rule, _ in found(tmp_path, {**CALM, "judge": judge})] == rules


@pytest.mark.parametrize(
    ("revision", "judge", "rules"),
    [
        ("Rewrite the answer to remove harmful words.", "Which answer has more harmful words?", ["contradiction"]),
        (
            "Rewrite the answer with kind words.",
            "Which answer is the most hurtful to those it is unkind to?",
            ["contradiction"],
        ),
        ("Make the tone more angry, harmful and excited.", "Which has the more harmful, angry and excited tone?", []),
        ("Make the tone more harmful and angry.", "Which has the less harmful and angry tone?", ["contradiction"]),
        ("Rewrite the angry answer to be shorter.", "Which angry answer is longer?", ["contradiction"]),
        ("Write it in a more formal tone.", "Which answer has a less formal tone?", ["contradiction"]),
        ("Write it in a more formal tone.", "Which answer has a more formal tone?", []),
    ],
)
def test_a_judge_is_not_to_undo_the_revision(tmp_path: Path, revision: str, judge: str, rules: list[str]) -> None:
    critique = "Point out each angry, harmful, kind, formal or excited word and its tone."
    principle = {"id": "calm", "critique": critique, "revision": revision, "judge": judge}
    assert [rule for _, rule, _ in found(tmp_path, principle) if rule not in ("negative", "unrelated-texts")] == rules


LONG = {
    "id": "long",
    "critique": "Point out each step of the explanation that is missing.",
    "revision": "Rewrite the answer as a longer explanation with every step.",
    "judge": "Which answer explains every step at more length?",
}
SHORT = {
    "id": "short",
    "critique": "Point out what could be cut from the answer.",
    "revision": "Rewrite the answer in fewer words, and cut what nobody needs.",
    "judge": "Which answer is shorter, with all that one needs?",
}


def test_principles_that_exclude_each_other_are_named_with_their_words(tmp_path: Path) -> None:
    (finding,) = lint(write(tmp_path, LONG, SOURCES, SHORT))
    assert (finding.principle, finding.rule, finding.severity) == ("short", "exclusion", "hint")
    assert finding.reason.startswith("asks for “shorter” where 'long' (line 3) asks for “longer”: they exclude")


@pytest.mark.parametrize(
    ("long", "short", "excluded"),
    [
        ({"tags": ["essay"]}, None, True),
        ({"tags": ["essay", "x"]}, {"tags": ["x", "chat"]}, True),
        ({"tags": ["essay"]}, {"tags": ["chat"]}, False),
        ({"question": "Is it an essay?"}, {"question": "Is it an essay?"}, True),
        ({"question": "Is it an essay?"}, {"question": "Is it a chat?"}, False),
    ],
)
def test_principles_that_may_never_meet_do_not_exclude_each_other(
    tmp_path: Path, long: dict[str, Any], short: dict[str, Any] | None, excluded: bool
) -> None:
    rules = [rule for _, rule, _ in found(tmp_path, LONG | {"applies_to": long}, SHORT | {"applies_to": short})]
    assert ("exclusion" in rules) == excluded


def test_harm_of_unlike_kinds_excludes_nothing(tmp_path: Path) -> None:
    def asking(judge: str) -> dict[str, Any]:
        return {**CALM, "id": f"p{len(judge)}", "judge": judge, "revision": "Rewrite the answer."}

    less, risks = asking("Which answer is less hurtful?"), asking("Which answer names more risks?")
    assert "exclusion" not in [rule for _, rule, _ in found(tmp_path, less, risks)]
    assert "exclusion" in [rule for _, rule, _ in found(tmp_path, less, asking("Which is the more hurtful answer?"))]


def test_the_texts_of_a_principle_are_about_one_thing(tmp_path: Path) -> None:
    (finding,) = lint(write(tmp_path, {**CALM, "judge": SOURCES["judge"]}))
    assert (finding.rule, finding.line) == ("unrelated-texts", 6)
    assert "judge shares no content word with the other texts" in finding.reason
    mixed = {**CALM, "revision": SOURCES["revision"], "judge": "Which answer mentions fewer animals and plants?"}
    (finding,) = lint(write(tmp_path, mixed))
    assert "critique, revision and judge share no content word with each other" in finding.reason
    short = {"id": "a", "critique": "What is missing?", "revision": "Add it.", "judge": "Which is better?"}
    assert found(tmp_path, short) == []


def test_near_duplicate_principles_are_reported(tmp_path: Path) -> None:
    copy = {**CALM, "id": "copy"}
    assert found(tmp_path, CALM, SOURCES, copy) == [("copy", "near-duplicate", "warning")]
    (finding,) = lint(write(tmp_path, CALM, SOURCES, copy))
    assert "has the same texts as 'calm' (line 3)" in finding.reason
    assert "give the other weight 2" in finding.suggestion
    close = {**copy, "judge": "Which answer has the calmer tone and fewer excited words?"}
    assert found(tmp_path, CALM, SOURCES, close) == [("copy", "near-duplicate", "warning")]
    # all that the short one says is said by the long one too, which says much besides
    more = "Name places, dates, people, rivers, mountains, harbours, bridges, streets, gardens, markets, towers, wells, roofs."
    long = {**copy, **{f: f"{CALM[f]} {more}" for f in TEXTS}}
    assert found(tmp_path, CALM, long) == [("copy", "near-duplicate", "warning")]
    other = {**copy, **{f: f"{SOURCES[f]} {more}" for f in TEXTS}}
    assert found(tmp_path, CALM, other) == []


@pytest.mark.parametrize(("weight", "starved"), [(0.005, True), (0.0051, False)])
def test_a_principle_that_is_hardly_ever_drawn_is_reported(tmp_path: Path, weight: float, starved: bool) -> None:
    rules = found(tmp_path, {**SOURCES, "weight": 1 - weight}, {**CALM, "weight": weight * 0.999})
    assert rules == ([("calm", "rarely-drawn", "warning")] if starved else [])


def test_a_rarely_drawn_principle_is_reported_with_its_share(tmp_path: Path) -> None:
    (finding,) = lint(write(tmp_path, {**SOURCES, "weight": 999}, CALM))
    assert (finding.principle, finding.line) == ("calm", 8)
    assert "weight 1 it is sampled once in 1000 times" in finding.reason


def test_texts_that_are_too_long_are_reported(tmp_path: Path) -> None:
    words = " ".join(["calm"] * 80)
    assert found(tmp_path, {**CALM, "critique": words}) == []
    assert found(tmp_path, {**CALM, "critique": f"{words} tone"}) == [("calm", "too-long", "warning")]


def test_framing_is_a_hint(tmp_path: Path) -> None:
    trait = {**CALM, "critique": "The AI should be kind, and its tone calm."}
    assert found(tmp_path, trait) == [("calm", "trait", "hint")]
    negative = {**CALM, "revision": "Do not use angry words, and avoid an excited tone."}
    assert found(tmp_path, negative) == [("calm", "negative", "hint")]


def test_a_text_made_of_another_is_a_hint(tmp_path: Path) -> None:
    made = {
        **CALM,
        "judge": f"Which answer better does what this instruction asks for? Instruction: {CALM['revision']}",
    }
    assert found(tmp_path, made) == [("calm", "repeated-text", "hint")]


def test_characters_are_reported_with_their_place(tmp_path: Path) -> None:
    text = yaml.safe_dump({"name": "c", "principles": [SOURCES, CALM]}, sort_keys=False, width=1000, allow_unicode=True)
    text = text.replace("name: c", "name: c # \u202e").replace("calm tone,", "c\u0430lm t\u200bone,")
    hidden, odd, zero = sorted(of_text(tmp_path, text), key=lambda f: (f.line, f.rule != "look-alike"))
    assert (hidden.line, hidden.rule, hidden.severity, hidden.principle) == (1, "hidden-character", "error", "")
    assert "column 11 contains U+202E RIGHT-TO-LEFT OVERRIDE" in hidden.reason
    assert (odd.rule, odd.severity, odd.principle) == ("look-alike", "warning", "calm")
    assert "'c\u0430lm' mixes Cyrillic and Latin letters: \u0430 is U+0430" in odd.reason
    assert (zero.line, zero.principle) == (odd.line, "calm")
    assert text.splitlines()[odd.line - 1].lstrip().startswith("revision")


def test_a_hidden_character_behind_an_escape_is_reported(tmp_path: Path) -> None:
    text = 'name: c\nprinciples:\n  - id: calm\n    critique: "Point out angry\\u202e words."\n'
    text += "    revision: Rewrite angry words calmly.\n    judge: Which answer is calmer, with fewer angry words?\n"
    (finding,) = of_text(tmp_path, text)
    assert (finding.line, finding.principle, finding.severity) == (4, "calm", "error")
    assert "escaped U+202E" in finding.reason


def test_aliases_and_tabs_are_reported(tmp_path: Path) -> None:
    text = """name: c
principles:
  - &first
    id: calm
    critique: &words 'Point out angry\twords.'
    revision: Rewrite the angry words calmly.
    judge: Which answer is calmer, with fewer angry words?
  - <<: *first
    id: numbers
    critique: Point out numbers without sources.
    revision: Rewrite the answer with sources of numbers.
    judge: Which answer has more sources of its numbers?
    notes: *words
"""
    findings = of_text(tmp_path, text)
    assert [(f.line, f.principle, f.rule) for f in findings] == [
        (5, "calm", "tab"),
        (8, "numbers", "alias"),
        (13, "numbers", "alias"),
    ]
    assert "column 38" in findings[0].reason
    assert "*first repeats what &first marks" in findings[1].reason


def test_a_field_of_a_merged_mapping_is_reported_at_the_principle(tmp_path: Path) -> None:
    text = "name: c\nprinciples:\n  - &a {id: calm, critique: Angry words., revision: Calm angry words., judge: Calm angry words}\n  - <<: *a\n    id: b\n"
    findings = [(f.line, f.principle, f.rule) for f in of_text(tmp_path, text)]
    assert (4, "b", "alias") in findings
    assert (4, "b", "no-choice") in findings


def test_a_file_that_does_not_load_is_an_error_a_fault(tmp_path: Path) -> None:
    findings = of_text(tmp_path, "name: c\nprinciples:\n  - {id: A, critique: c, revison: r, judge: j\u200b}\n")
    assert [(f.line, f.rule, f.severity) for f in findings] == [
        (3, "invalid", "error"),
        (3, "invalid", "error"),
        (3, "hidden-character", "error"),
    ]
    assert (
        "id: expected a name of lower-case letters, digits, '_' and '-' that begins with a letter or digit, found 'A'"
        in findings[0].reason
    )
    assert "unknown key 'revison'; did you mean 'revision'?" in findings[1].reason
    assert findings[0].principle == "A"
    (finding,) = of_text(tmp_path, "name: [\n")
    assert finding.rule == "invalid"
    with pytest.raises(CaiError, match="no such file"):
        lint(tmp_path / "none.yaml")


def test_a_file_that_does_not_load_is_looked_at_in_whole(tmp_path: Path) -> None:
    bad = {**SOURCES, "id": "bad", "weight": 0, "jugde": "x"}
    path = write(tmp_path, bad, {**CALM, "judge": "Is it calm?"}, {**CALM, "notes": "the id again"})
    path.write_text(path.read_text(encoding="utf-8") + "nam: c\n", encoding="utf-8")
    findings = [(f.principle, f.rule) for f in lint(path)]
    assert sorted(findings) == [
        ("", "invalid"), ("bad", "invalid"), ("bad", "invalid"), (CALM["id"], "no-choice")
    ]  # fmt: skip
    (text,) = of_text(tmp_path, "An essay, and no constitution.\n")
    assert (
        text.reason == "expected a mapping with name, description, principles, found 'An essay, and no constitution.'"
    )


SILENT_FILE = """\
name: c
principles:
  - id: calm{whole}
    notes: "# lint: ignore nothing-here"
    critique: >-
      Angry words.
      # lint: ignore nothing-here
    revision: "Calm the angry words." # and so on
    judge: Are the angry words calm?{line}
"""


@pytest.mark.parametrize(
    ("whole", "line", "rules"),
    [
        ("", "", ["no-choice"]),
        ("  # lint: ignore no-choice", "", []),
        ("", "  # lint: ignore no-choice", []),
        ("", "  # why not; lint: ignore no-choice", ["no-choice"]),  # a comment of another form
        ("  #lint:ignore trait,no-choice", "", ["ignore"]),  # no trait is there to silence
        ("  # lint: ignore no-chioce", "", ["ignore", "no-choice"]),
        ("  # lint: ignore", "", ["ignore", "no-choice"]),
        ("  # lint: ignore invalid", "", ["ignore", "no-choice"]),
        ("", "\n# lint: ignore no-choice", ["ignore", "no-choice"]),  # on a line of its own it silences that line
    ],
)
def test_a_comment_silences_a_rule_on_its_line_or_in_the_principle_that_begins_there(
    tmp_path: Path, whole: str, line: str, rules: list[str]
) -> None:
    findings = of_text(tmp_path, SILENT_FILE.format(whole=whole, line=line))
    assert sorted(f.rule for f in findings) == rules
    for finding in findings:
        if finding.rule == "ignore" and "chioce" in whole:
            assert (finding.line, finding.principle) == (3, "calm")
            assert finding.suggestion == "write 'no-choice'"


def test_a_comment_silences_no_other_principle(tmp_path: Path) -> None:
    text = SILENT_FILE.format(whole="  # lint: ignore no-choice", line="")
    more = "  - {id: b, critique: Rude words., revision: Mend rude words., judge: 'Are rude words mended?'}\n"
    assert [(f.principle, f.rule) for f in of_text(tmp_path, text + more)] == [("b", "no-choice")]


@given(
    st.text(max_size=80)
    | st.builds(
        "name: a\nprinciples:\n  - {{id: a, critique: {}, revision: {}, judge: {}}}\n".format,
        *[st.text(max_size=12)] * 3,
    )
)
def test_any_file_can_be_linted(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(text, encoding="utf-8")
        findings = lint(path)
        try:
            load_constitution(path)
        except CaiError:
            assert any(f.rule == "invalid" for f in findings)
        else:
            assert all(f.rule != "invalid" for f in findings)
        assert all(f.line >= 1 and f.reason and f.suggestion for f in findings)
