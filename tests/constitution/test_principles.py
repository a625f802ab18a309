from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.constitution.difference import changed_calls, principle_changes, word_changes
from cai.constitution.principles import (
    AppliesTo,
    Constitution,
    Principle,
    PrincipleTest,
    applying,
    assign,
    load_constitution,
    manifest_of,
    questions,
    shares,
)

ROOT = Path(__file__).parent.parent.parent
GOOD = {"critique": "Point out faults.", "revision": "Rewrite it.", "judge": "Which is better?"}


def make(weights: dict[str, float]) -> Constitution:
    return Constitution(name="c", principles=[Principle(id=i, weight=w, **GOOD) for i, w in weights.items()])


def having(fields: str) -> str:
    return f"\n  - id: a\n    tests: [{{{fields}}}]\n    critique: c\n    revision: r\n    judge: j"


@pytest.mark.parametrize(("name", "count"), [("harmless", 16), ("helpful-honest", 8), ("brief", 4), ("plain", 1)])
def test_the_shipped_constitutions_load(name: str, count: int) -> None:
    c = load_constitution(ROOT / f"constitutions/{name}.yaml")
    assert (c.name, len(c.principles)) == (name, count)


@pytest.mark.parametrize(
    ("principles", "expected"),
    [
        ("[]", "f.yaml:2: principles: expected a list of mappings that is not empty, found an empty list"),
        ("\n  - {id: a, critique: '', revision: r, judge: j}", "f.yaml:3: principles[0] ('a').critique: 'critique' is empty; write what to look for"),
        ("\n  - {id: A b, critique: c, revision: r, judge: j}", "f.yaml:3: principles[0] ('A b').id: expected a name of lower-case letters, digits, '_' and '-' that begins with a letter or digit, found 'A b'"),
        ("\n  - {id: c\u0430re, critique: c, revision: r, judge: j}", "found 'c\u0430re' (with U+0430 CYRILLIC SMALL LETTER A)"),
        ("\n  - {id: a, critique: c, revision: r, judge: j}\n  - {id: a, critique: c, revision: r, judge: j}", "f.yaml:4: principles[1] ('a').id: duplicate id 'a' (principles number 1 and 2)"),
        ("\n  - {id: a, critique: c, revision: r, judge: j, weight: 0}", "weight: expected a number above 0, found 0"),
        ("\n  - {id: a, critique: c, revision: r}", "f.yaml:3: principles[0] ('a').judge: missing; expected a text"),
        ("\n  - {id: a, critique: c, revison: r, judge: j}", "unknown key 'revison'; did you mean 'revision'?"),
        (having("prompt: p, draft: d"), "f.yaml:4: principles[0] ('a').tests[0]: no expectation; give one or more of applies, critique, revision, better, worse"),
        (having("prompt: p, draft: d, critique: find"), "f.yaml:4: principles[0] ('a').tests[0].critique: expected 'finds' or 'finds nothing' or null, found 'find'; did you mean 'finds'?"),
        (having("prompt: p, draft: d, revision: {contains: []}"), "tests[0].revision: no phrases; list some under contains or lacks"),
        (having("prompt: p, draft: d, revision: {lacks: [x, ' ']}"), "tests[0].revision.lacks[1]: expected a text that is not empty, found ' '"),
        (having("prompt: p, draft: d, better: ' d '"), "tests[0]: better or worse equals the draft; write another answer"),
        (having("prompt: p, draft: d, beter: x"), "tests[0].beter: unknown key 'beter'; did you mean 'better'?"),
        (having("prompt: p, draft: d, applies: true"), "tests[0].applies: the principle has no question to test; give it applies_to.question"),
        ("\n  - {id: a, critique: c, revision: r, judge: j, applies_to: {}}", "f.yaml:3: principles[0] ('a').applies_to: no condition; give tags or a question"),
        ("\n  - {id: a, critique: c, revision: r, judge: j, applies_to: {tag: [x]}}", "unknown key 'tag'; did you mean 'tags'?"),
        ("\n  - {id: a, critique: c, revision: r, judge: j, applies_to: {tags: ['']}}", "applies_to.tags[0]: expected a text that is not empty"),
        (having("prompt: p, draft: d, better: x, least: 0.2"), "least: expected a number from 0.5 to 1, found 0.2"),
    ],
)  # fmt: skip
def test_a_bad_constitution_is_refused_with_its_line(tmp_path: Path, principles: str, expected: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"name: c\nprinciples: {principles}\n", encoding="utf-8")
    with pytest.raises(CaiError) as caught:
        load_constitution(path)
    assert expected in str(caught.value).replace(str(path), "f.yaml")


def test_a_constitution_of_others_is_met_with_the_command_that_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text('{"constitutions": [{"critic": "c", "revision": "r"}]}', encoding="utf-8")
    with pytest.raises(
        CaiError, match=r"name: missing(.*\n)*`cai constitution import` converts external constitutions"
    ):
        load_constitution(path)


def test_fingerprints_follow_texts_and_weights_and_nothing_else() -> None:
    a = make({"x": 1, "y": 2})
    assert a.fingerprint == make({"y": 2, "x": 1}).fingerprint
    assert a.fingerprint != make({"x": 1, "y": 1}).fingerprint
    first = a.principles[0]
    test = PrincipleTest(prompt="p", draft="d", critique="finds")
    unseen = {"notes": "n", "tags": ["t"], "weight": 5.0, "tests": [test]}
    assert first.model_copy(update=unseen).fingerprint == first.fingerprint
    assert (
        make({"x": 1}).fingerprint
        == Constitution(name="c", principles=[Principle(id="x", tests=[test], **GOOD)]).fingerprint
    )
    assert first.model_copy(update={"judge": "Which is shorter?"}).fingerprint != first.fingerprint


@given(st.integers(0, 10**6), st.sets(st.text(max_size=6), min_size=1, max_size=30))
def test_adding_a_principle_moves_only_its_own_share(seed: int, prompt_ids: set[str]) -> None:
    few, more = make({f"p{i}": 1 for i in range(8)}), make({f"p{i}": 1 for i in range(9)})
    for prompt_id in prompt_ids:
        before, after = (assign(c, seed, prompt_id, "round 1")[0].id for c in (few, more))
        assert after in (before, "p8")


@given(st.integers(0, 10**6), st.text(max_size=6), st.integers(1, 20))
def test_the_first_choices_are_the_same_however_many_are_asked_for(seed: int, prompt_id: str, count: int) -> None:
    c = make({f"p{i}": 1 + i for i in range(8)})
    everyone = [p.id for p in assign(c, seed, prompt_id, "judge", 8)]
    assert sorted(everyone) == sorted(p.id for p in c.principles)
    assert [p.id for p in assign(c, seed, prompt_id, "judge", count)] == everyone[:count]


def test_principles_are_drawn_in_proportion_to_their_weight() -> None:
    from scipy.stats import chisquare

    c = make({"light": 1, "middle": 2, "heavy": 5})
    drawn = Counter(assign(c, 0, f"prompt {i}", "round 1")[0].id for i in range(8000))
    assert chisquare([drawn["light"], drawn["middle"], drawn["heavy"]], [1000, 2000, 5000]).pvalue > 0.01


def test_rewording_and_reordering_move_nobody() -> None:
    c = make({f"p{i}": 1 for i in range(8)})
    edited = c.model_copy(
        update={"principles": [p.model_copy(update={"critique": "x"}) for p in reversed(c.principles)]}
    )
    for i in range(200):
        assert assign(c, 0, f"{i}", "round 1")[0].id == assign(edited, 0, f"{i}", "round 1")[0].id


def test_a_difference_names_each_principle_once_for_each_change() -> None:
    a, b = make({"x": 1, "y": 1, "z": 1}), make({"y": 3, "z": 1, "new": 1})
    found = principle_changes(a, edited(b, z={"critique": "other", "applies_to": AppliesTo(tags=["t"])}))
    assert found == (["new"], ["x"], ["z"], ["y"], ["z"])


def edited(c: Constitution, /, **changes: dict[str, object]) -> Constitution:
    """The constitution with fields of some principles, by id, replaced."""
    return c.model_copy(update={"principles": [p.model_copy(update=changes.get(p.id, {})) for p in c.principles]})


QUESTION = "Does the message ask about money?"


def test_a_principle_applies_by_tag_by_question_or_by_both() -> None:
    c = edited(
        make({"all": 1, "tag": 1, "question": 1, "both": 1}),
        tag={"applies_to": AppliesTo(tags=["x", "y"])},
        question={"applies_to": AppliesTo(question=QUESTION)},
        both={"applies_to": AppliesTo(tags=["y"], question="Is it long?")},
    )

    def ids(tags: list[str], **answers: float) -> str:
        found = applying(c, tags, {QUESTION: answers["money"], "Is it long?": answers.get("long", 0.0)})
        return " ".join(p.id for p in found.principles)

    assert ids([], money=0.49) == "all"
    assert ids(["x"], money=0.5) == "all tag question"
    assert ids(["y"], money=0.2, long=0.9) == "all tag both"
    assert applying(c, ["y"], {QUESTION: 1.0, "Is it long?": 1.0}) is c
    # the second question is of no matter where the tag is missing
    assert questions(c, ["x"]) == [QUESTION] and questions(c, ["y"]) == questions(c) == [QUESTION, "Is it long?"]
    assert applying(edited(c, all={"applies_to": AppliesTo(tags=["z"])}), [], {QUESTION: 0.0}).principles == []


def test_where_principles_apply_decides_a_run_and_no_row_of_a_text() -> None:
    c = make({"a": 1, "b": 1})
    scoped = edited(c, a={"applies_to": AppliesTo(tags=["x"])})
    assert scoped.fingerprint != c.fingerprint
    assert scoped.principles[0].fingerprint == c.principles[0].fingerprint
    assert manifest_of(c)["a"] == {"text": c.principles[0].fingerprint, "weight": 1}
    assert manifest_of(scoped)["a"] == manifest_of(c)["a"] | {"applies_to": {"tags": ["x"], "question": None}}


@given(st.integers(0, 10**6), st.sets(st.text(max_size=6), min_size=1, max_size=30))
def test_an_edit_of_where_a_principle_applies_moves_only_its_own_share(seed: int, prompt_ids: set[str]) -> None:
    c = make({f"p{i}": 1 for i in range(8)})
    scoped = edited(c, p3={"applies_to": AppliesTo(tags=["x"])})
    for prompt_id in prompt_ids:
        before, without, tagged = (
            assign(applying(one, tags, {}), seed, prompt_id, "round 1")[0].id
            for one, tags in ((c, []), (scoped, []), (scoped, ["x"]))
        )
        assert tagged == before and without != "p3" and (without == before or before == "p3")


def test_new_calls_of_an_edit_of_where_a_principle_applies_are_at_most_its_share() -> None:
    c = make({"a": 1, "b": 1, "c": 2})
    assert changed_calls(c, edited(c, c={"applies_to": AppliesTo(tags=["x"])})) == (0.5, 0.5, 0.5)


def test_shares_are_the_weights_normalised() -> None:
    assert shares(make({"light": 1, "heavy": 3})) == {"light": 0.25, "heavy": 0.75}


weights = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0.25, 1, 1, 2, 8]), min_size=1)


@settings(max_examples=25)
@given(weights, weights, st.sets(st.sampled_from("abcdef")))
def test_the_share_that_moves_is_what_assignment_does(
    before: dict[str, float], after: dict[str, float], reworded: set[str]
) -> None:
    a, b = make(before), edited(make(after), **{i: {"judge": "Which is shorter?"} for i in reworded})
    count = 1000
    drawn = [[assign(c, 0, f"prompt {n}", "round 1")[0] for c in (a, b)] for n in range(count)]
    for share, happened in (
        (changed_calls(a, b).critiques, sum(x.id != y.id for x, y in drawn)),
        (changed_calls(a, b).revisions, sum(x.id != y.id for x, y in drawn)),
        (changed_calls(a, b).judge, sum((x.id, x.judge) != (y.id, y.judge) for x, y in drawn)),
    ):
        # five standard errors; where nothing or everything moves, exactly
        assert abs(happened / count - share) <= 5 * (share * (1 - share) / count) ** 0.5 + 1e-9


def test_what_a_run_asks_anew_depends_on_which_text_was_reworded() -> None:
    c = make({"a": 1, "b": 1, "c": 2})
    assert changed_calls(c, edited(c, c={"judge": "x"})) == (0, 0, 0.5)
    assert changed_calls(c, edited(c, c={"critique": "x"}, a={"revision": "x"})) == (0.5, 0.75, 0)
    assert changed_calls(c, edited(c, c={"notes": "x", "tags": ["x"]})) == (0, 0, 0)
    assert changed_calls(c, edited(c, a={"weight": 3.0}, b={"weight": 3.0}, c={"weight": 6.0})) == (0, 0, 0)
    assert changed_calls(c, make({"a": 1, "b": 1, "c": 2, "new": 4})) == pytest.approx((0.5, 0.5, 0.5))
    assert changed_calls(c, make({"x": 1})) == (1, 1, 1)


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_word_changes_hold_both_texts(before: str, after: str) -> None:
    changes = word_changes(before, after)
    assert "".join(text for what, text in changes if what != "added") == before
    assert "".join(text for what, text in changes if what != "removed") == after
    assert all(text for _, text in changes)


def test_word_changes_are_read_in_phrases() -> None:
    assert word_changes("Say it in two short words.", "Say it in one long breath.") == [
        ("same", "Say it in "),
        ("removed", "two short words."),
        ("added", "one long breath."),
    ]
    assert word_changes("Be brief.", "Be very brief.") == [("same", "Be "), ("added", "very "), ("same", "brief.")]
