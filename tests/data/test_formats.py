"""Every external format: one row each, with the fields its documentation names, as prompt, preference and completion."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.data.formats import TURN, ReadSummary, is_transcript, transcript, transcript_problem, turns
from cai.data.preferences import iter_preferences
from cai.data.prompts import iter_completions, iter_prompts
from cai.data.records import Demonstration, Message, Messages, Preference, Prompt, Skipped


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


TALK = [user("Hi."), said("Hello."), user("Why?")]
WRITTEN = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Why?"


class Case(NamedTuple):
    """A row, and what it stands for; None where the format has none."""

    row: dict[str, Any]
    format: str
    prompt: list[dict[str, str]]
    pair: tuple[str, str, float] | None
    completion: str | None


ANNOTATED = {
    "metadata": {"version": "2.0", "default_annotator": "d0"},
    "annotators": {"d0": {"name": "preferred", "type": "human"}, "p1": {"description": "Be brief", "type": "principle"}},
    "comparisons": [
        {
            "id": "c1", "prompt": "Why?", "response_a": {"text": "no", "model": "m"}, "response_b": {"text": "so"},
            "annotations": {"d0": {"pref": "b"}, "p1": {"pref": "a"}}, "metadata": {"index": "0"},
        },
    ],
}  # fmt: skip
CASES = {
    "trl, explicit": Case({"prompt": "Why?", "chosen": "so", "rejected": "no"}, "pair", [user("Why?")], ("so", "no", 1), None),
    "trl, explicit turns": Case({"prompt": TALK, "chosen": [said("so")], "rejected": [said("no")]}, "pair", TALK, ("so", "no", 1), None),
    "trl, implicit turns": Case({"chosen": [*TALK, said("so")], "rejected": [*TALK, said("no")]}, "pair", TALK, ("so", "no", 1), None),
    "hh-rlhf": Case({"chosen": WRITTEN + "\n\nAssistant: so", "rejected": WRITTEN + "\n\nAssistant: no"}, "pair", TALK, ("so", "no", 1), None),
    "trl, prompt and completion": Case({"prompt": "Why?", "completion": "so"}, "prompt-completion", [user("Why?")], None, "so"),
    "trl, turns and completion": Case({"prompt": TALK, "completion": [said("so")]}, "prompt-completion", TALK, None, "so"),
    "trl, unpaired": Case({"prompt": TALK, "completion": [said("so")], "label": True}, "kto", TALK, None, "so"),
    "trl, prompt only": Case({"prompt": TALK}, "prompt", TALK, None, None),
    "ultrafeedback_binarized": Case(
        {
            "prompt": "Why?", "prompt_id": "ab12", "chosen": [user("Why?"), said("so")], "rejected": [user("Why?"), said("no")],
            "messages": [user("Why?"), said("so")], "score_chosen": 8.5, "score_rejected": 7.0,
        },
        "pair", [user("Why?")], ("so", "no", 1), "so",
    ),
    "cai-conversation": Case(
        {
            "init_prompt": "Why?", "init_response": "no", "critic_prompt": "What is wrong?", "critic_response": "All.",
            "revision_prompt": "Again.", "revision_response": "so", "prompt": "Why?", "messages": [user("Why?"), said("so")],
            "chosen": [user("Why?"), said("so")], "rejected": [user("Why?"), said("no")],
        },
        "cai-conversation", [user("Why?")], ("so", "no", 1), "so",
    ),
    "openai chat": Case({"messages": [*TALK, said("so")]}, "chat", TALK, None, "so"),
    "openai preference": Case(
        {
            "input": {"messages": TALK, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [said("so")], "non_preferred_output": [said("no")],
        },
        "openai-preference", TALK, ("so", "no", 1), None,
    ),
    "alpaca_eval outputs": Case(
        {"instruction": "Why?", "output": "so", "generator": "m", "dataset": "d", "datasplit": "eval"},
        "alpaca-eval", [user("Why?")], None, "so",
    ),
    "alpaca_eval annotations": Case(
        {
            "instruction": "Why?", "output_1": "no", "generator_1": "ref", "output_2": "so", "generator_2": "m",
            "annotator": "weighted", "preference": 1.75, "price_per_example": 0.1,
        },
        "alpaca-eval", [user("Why?")], ("so", "no", 0.75), None,
    ),
    "annotated pairs": Case(ANNOTATED, "annotated-pairs", [user("Why?")], ("so", "no", 1), None),
    "ranking": Case({"prompt": "Why?", "responses": ["so", "no"]}, "responses", [user("Why?")], ("so", "no", 1), None),
    "few-shot of the judge": Case(
        {"prompt": WRITTEN + "\n\nAssistant:", "corrects": ["It is so."], "incorrects": ["It is not."]},
        "correct-incorrect", TALK, ("It is so.", "It is not.", 1), None,
    ),
}  # fmt: skip


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CASES)
def test_every_format_is_read_as_the_prompt_it_holds(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    [prompt] = iter_prompts(written(tmp_path, case.row))
    assert isinstance(prompt, Prompt)
    assert prompt.messages == case.prompt


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.pair])
def test_every_format_of_a_preference_is_read(tmp_path: Path, name: str) -> None:
    case, seen = CASES[name], ReadSummary()
    [pair] = iter_preferences(written(tmp_path, case.row), seen)
    assert isinstance(pair, Preference)
    assert (pair.messages, (pair.chosen, pair.rejected, pair.p)) == (case.prompt, case.pair)
    assert seen.formats == {case.format: 1}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.completion])
def test_every_format_of_an_answer_to_learn_is_read(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    [answer] = iter_completions(written(tmp_path, case.row))
    assert isinstance(answer, Demonstration)
    assert (answer.messages, answer.completion) == (case.prompt, case.completion)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.pair and case.format != "kto"])
def test_a_row_that_is_no_preference_lists_the_closest_formats(tmp_path: Path, name: str) -> None:
    with pytest.raises(CaiError, match=r"rows\.jsonl:1: unknown format of a preference"):
        list(iter_preferences(written(tmp_path, CASES[name].row)))


def test_a_null_is_an_absent_field(tmp_path: Path) -> None:
    row = {"id": None, "prompt": None, "p": None, "tags": None, **CASES["hh-rlhf"].row}
    [pair] = iter_preferences(written(tmp_path, row))
    assert isinstance(pair, Preference)
    assert (pair.messages, pair.p, pair.tags) == (TALK, 1, [])


def test_an_empty_cell_of_an_optional_column_is_an_absent_field(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("id,prompt,chosen,rejected,p,tags\n,Why?,so,no,,\nx,Why?,so,,0.5,t\n", encoding="utf-8")
    pair, empty = iter_preferences(path)
    assert isinstance(pair, Preference)
    assert (len(pair.prompt_id), pair.p, pair.tags) == (16, 1, [])
    assert isinstance(empty, Skipped)
    assert (empty.prompt_id, empty.reason) == ("x", "an answer is empty")


def test_an_incomplete_row_lists_what_the_closest_formats_miss(tmp_path: Path) -> None:
    with pytest.raises(CaiError) as caught:
        list(iter_preferences(written(tmp_path, {"instruction": "Why?", "output_1": "so", "chosen": "x"})))
    assert str(caught.value).splitlines()[0].endswith("(found instruction, output_1, chosen); the closest:")
    assert str(caught.value).splitlines()[1:] == ["  alpaca-eval: no 'output_2'", "  pair: no 'rejected'"]


def test_a_misspelt_field_is_an_error_and_an_unused_one_is_counted(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": "so", "rejected": "no", "annotator": "me"}
    seen = ReadSummary()
    list(iter_preferences(written(tmp_path, row, row), seen))
    assert seen.unused == {"annotator": 2}
    with pytest.raises(CaiError, match=r"rows\.jsonl:2: unknown field 'weights'; did you mean 'weight'\?"):
        list(iter_preferences(written(tmp_path, row, {**row, "weights": 2})))


def test_a_field_or_two_of_many_do_not_come_close_to_a_format(tmp_path: Path) -> None:
    with pytest.raises(
        CaiError,
        match=r"expected one of\n  prompt: prompt or messages\n(.*\n)*rename 'question' to 'prompt', or say `prompts.column: question`",
    ):
        list(iter_prompts(written(tmp_path, {"question": "Why?", "source": "web"})))


@pytest.mark.parametrize("row", [{"promt": "Why?"}, {"Prompt": "Why?"}, {"promt": "Why?", "rejected": "no"}])
def test_a_mistyped_field_is_met_with_the_nearest_in_a_row_of_an_unknown_format(
    tmp_path: Path, row: dict[str, str]
) -> None:
    with pytest.raises(CaiError, match=r"unknown format of a prompt(.*\n)*'(promt|Prompt)': did you mean 'prompt'\?"):
        list(iter_prompts(written(tmp_path, row)))


def test_a_format_is_offered_once_though_prompts_and_pairs_have_one_of_its_name(tmp_path: Path) -> None:
    with pytest.raises(CaiError) as error:
        list(iter_prompts(written(tmp_path, {"foo": "bar"})))
    names = [line.strip().partition(":")[0] for line in str(error.value).splitlines() if line.startswith("  ")]
    assert len(names) == len(set(names)) and {"alpaca-eval", "cai-conversation", "pair"} <= set(names)
    assert "  alpaca-eval: instruction\n" in str(error.value)


def test_good_and_bad_answers_to_one_prompt_are_its_pairs_wherever_they_stand(tmp_path: Path) -> None:
    def rated(prompt: str, completion: str, label: bool) -> dict[str, Any]:
        return {"prompt": prompt, "completion": completion, "label": label}

    rows = [
        rated("Why?", "no", False),
        rated("How?", "x", True),
        rated("Why?", "so", True),
        rated("How?", "y", True),
        {"prompt": "Who?", "chosen": "me", "rejected": "you"},
        rated("Why?", "nah", False),
    ]
    seen = ReadSummary()
    found = list(iter_preferences(written(tmp_path, *rows), seen))
    pairs = [(p.chosen, p.rejected) for p in found if isinstance(p, Preference)]
    assert pairs == [("me", "you"), ("so", "no"), ("so", "nah")]
    alone = [(row.stage, row.reason[:45]) for row in found if isinstance(row, Skipped)]
    assert alone == [(f"rows.jsonl:{line}", "its prompt has no answer with the other label") for line in (2, 4)]
    assert seen.formats == {"pair": 1, "kto": 3}

    del rows[4]
    seen = ReadSummary()
    prompts = [p.messages for p in iter_prompts(written(tmp_path, *rows), seen) if isinstance(p, Prompt)]
    assert prompts == [[user("Why?")], [user("How?")]]
    assert seen.unused == {"completion": 5, "label": 5}
    answers = list(iter_completions(written(tmp_path, *rows)))
    bad = "the completion's label is false"
    assert [(a.completion if isinstance(a, Demonstration) else a.reason) for a in answers] == [bad, "x", "so", "y", bad]
    with pytest.raises(CaiError, match=r"rows\.jsonl:2: label: expected true or false, found 'no'"):
        list(iter_preferences(written(tmp_path, rows[0], {**rows[1], "label": "no"})))


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (1, ("no", "so", 1)),
        (1.25, ("no", "so", 0.75)),
        (1.5, ("so", "no", 0.5)),
        (0, ("so", "no", 0.5)),
        (2, ("so", "no", 1)),
    ],
)
def test_alpaca_evals_preference_is_the_probability_of_the_second_and_one(
    tmp_path: Path, preference: float, expected: tuple[str, str, float]
) -> None:
    [pair] = iter_preferences(written(tmp_path, {**CASES["alpaca_eval annotations"].row, "preference": preference}))
    assert isinstance(pair, Preference)
    assert (pair.chosen, pair.rejected, pair.p) == expected
    assert (pair.source, pair.judge) == ("judge", "weighted")


def test_an_annotation_that_failed_is_skipped_and_one_out_of_range_is_an_error(tmp_path: Path) -> None:
    row = CASES["alpaca_eval annotations"].row
    [failed] = iter_preferences(written(tmp_path, {**row, "preference": None}))
    assert isinstance(failed, Skipped)
    for wrong in (3, -1, "two"):
        with pytest.raises(CaiError, match=r"rows\.jsonl:1: preference: expected a number from 1 to 2, or 0"):
            list(iter_preferences(written(tmp_path, {**row, "preference": wrong})))


def test_errors_name_the_comparison_by_its_position_in_the_file(tmp_path: Path) -> None:
    [first] = ANNOTATED["comparisons"]  # type: ignore[misc]
    undecided = {**first, "annotations": {"d0": {"pref": None, "no_pref_reason": "tie"}}}
    silent, unasked = {**first, "prompt": None}, {**first, "annotations": {}}
    path = tmp_path / "pairs.json"

    def write(*comparisons: Any) -> None:
        path.write_text(json.dumps({**ANNOTATED, "comparisons": comparisons}, indent=1))

    write(first, undecided, silent, unasked)
    pair, tie, *others = iter_preferences(path)
    assert isinstance(pair, Preference)
    assert isinstance(tie, Preference)
    assert tie.p == 0.5
    assert (pair.prompt_id, pair.source) == ("c1", "human")
    assert [(o.stage, o.reason.split(":")[0]) for o in others if isinstance(o, Skipped)] == [
        ("pairs.json:comparison 3", "no prompt"),
        ("pairs.json:comparison 4", "no annotation by the default annotator, d0"),
    ]
    write(first, {**first, "response_b": {}})
    with pytest.raises(CaiError, match=r"pairs\.json:comparison 2: response_b: text: expected a text"):
        list(iter_preferences(path))
    write(7)
    with pytest.raises(CaiError, match="comparison 1: expected a JSON object, found 7"):
        list(iter_preferences(path))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"version": "1.0", "default_annotator": "d0"}, r"annotated pairs of version 1\.0; expected version 2\.0"),
        ({"version": "2.0", "default_annotator": "x"}, "metadata.default_annotator: 'x' is not among the annotators"),
        ([], "expected the objects 'metadata' and 'annotators'"),
    ],
)
def test_annotated_pairs_of_another_shape_are_refused(tmp_path: Path, metadata: Any, expected: str) -> None:
    with pytest.raises(CaiError, match=expected):
        list(iter_preferences(written(tmp_path, {**ANNOTATED, "metadata": metadata})))


def test_equal_scores_are_no_preference(tmp_path: Path) -> None:
    row = {**CASES["ultrafeedback_binarized"].row, "score_rejected": 8.5}
    [pair] = iter_preferences(written(tmp_path, row))
    assert isinstance(pair, Preference)
    assert (pair.prompt_id, pair.p) == ("ab12", 0.5)


def test_questions_of_two_turns_are_asked_the_first(tmp_path: Path) -> None:
    row = {"question_id": 81, "category": "writing", "turns": ["Why?", "Now in verse."], "reference": []}
    [prompt] = iter_prompts(written(tmp_path, row))
    assert prompt == Prompt(id="81", messages=[user("Why?")], tags=["writing"])  # type: ignore[list-item]
    with pytest.raises(CaiError, match=r"rows\.jsonl:1: turns: expected a list of texts"):
        list(iter_prompts(written(tmp_path, {**row, "turns": []})))


def test_a_red_team_attempt_is_its_first_human_turn_with_its_tags(tmp_path: Path) -> None:
    row = {
        "transcript": WRITTEN + "\n\nAssistant: no", "min_harmlessness_score_transcript": -1.5, "num_params": "52B", "rating": 3.0,
        "model_type": "rlhf", "task_description": "…", "task_descripton_harmlessness_score": -0.2, "red_team_member_id": 4,
        "is_upworker": False, "tags": ["Theft"],
    }  # fmt: skip
    first, again, silent = iter_prompts(
        written(tmp_path, row, {**row, "tags": None}, {**row, "transcript": "\n\nAssistant: Hi"})
    )
    assert isinstance(first, Prompt)
    assert (first.messages, first.tags) == ([user("Hi.")], ["Theft"])
    assert isinstance(again, Skipped)
    assert isinstance(silent, Skipped)
    assert (again.reason, silent.reason) == ("a row above has the same prompt", "no human turn in the transcript")


def test_the_prompt_of_a_preference_that_cannot_be_asked_is_skipped(tmp_path: Path) -> None:
    odd = "\n\nHuman: a\n\nHuman: b\n\nAssistant: "
    [skipped] = iter_prompts(written(tmp_path, {"chosen": odd + "x", "rejected": odd + "y"}))
    assert isinstance(skipped, Skipped)
    assert skipped.reason.startswith("turns must alternate")


def test_an_answer_that_is_not_to_be_learnt_is_skipped(tmp_path: Path) -> None:
    answers = [{"messages": [*TALK, {**said("so"), "weight": weight}]} for weight in (1, 0)]
    learnt, not_learnt = iter_completions(written(tmp_path, *answers))
    assert isinstance(learnt, Demonstration)
    assert isinstance(not_learnt, Skipped)
    with pytest.raises(CaiError, match=r"rows\.jsonl:1: messages: expected turns that end with the assistant's"):
        list(iter_completions(written(tmp_path, {"messages": TALK})))


TEXT = st.text(st.sampled_from("aé \n\t:HumanAsit\u2028"), max_size=30)  # what separators are made of, above all


@given(st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), TEXT), min_size=1, max_size=6))
def test_every_transcript_prints_back_byte_for_byte(said: list[tuple[str, str]]) -> None:
    written = "".join(f"\n\n{who}: {text}" for who, text in said)
    assert is_transcript(written)
    printed = transcript(turns(written))
    # A text that holds what looks like a turn may lack the space behind it, which printing puts there.
    assert printed == TURN.sub(lambda found: f"\n\n{found[1]}: ", written)
    if not any(TURN.search(text) for _, text in said):
        assert printed == written


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=6))
def test_a_conversation_comes_back_unless_a_turn_would_be_read_as_two(said: list[tuple[str, str]]) -> None:
    messages: Messages = [Message(role=role, content=text) for role, text in said]  # type: ignore[typeddict-item]
    assert (turns(transcript(messages)) == messages) == (transcript_problem(messages) is None)


def test_turns_keep_their_white_space_and_an_empty_last_one() -> None:
    written = "\n\nHuman:  two spaces\n\n\nAssistant: a line \n\nHuman: \n\nAssistant: "
    assert [turn["content"] for turn in turns(written)] == [" two spaces\n", "a line ", "", ""]
    assert transcript(turns(written)) == written
    assert not is_transcript("Human: Hi")
