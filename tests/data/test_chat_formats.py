import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.errors import CaiError
from cai.data import evaluation_formats
from cai.data.chat_formats import EXPORTS, exported, likelier
from cai.data.files import table_writer
from cai.data.formats import TURN
from cai.data.preferences import iter_preferences
from cai.data.prompts import iter_completions
from cai.data.records import Demonstration, Message, Preference, Skipped, Verdict

TEXT = st.text(st.sampled_from("ab:? \né„Human:Assistant:"), min_size=1, max_size=12).filter(lambda t: bool(t.strip()))


TEXT |= st.sampled_from(["x\n\nHuman: y", " leading and trailing \n"])


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    said = draw(st.lists(TEXT, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
    turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(said)]  # type: ignore[typeddict-item]
    system = [Message(role="system", content=draw(TEXT))] if draw(st.booleans()) else []
    return [*system, *turns]


PAIRS = st.lists(
    st.builds(
        Preference,
        prompt_id=TEXT,
        messages=conversations(),
        tags=st.lists(TEXT, max_size=1),
        chosen=TEXT,
        rejected=TEXT,
        p=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
        weight=st.sampled_from([1.0, 2.5]),
    ).filter(lambda pair: pair.chosen != pair.rejected),
    min_size=1,
    max_size=3,
    unique_by=lambda pair: json.dumps([turn for turn in pair.messages if turn["role"] != "system"]),
)  # unpaired answers to one prompt would meet all others of it


def there_and_back(rows: list[Any], name: str, suffix: str, read: Any) -> tuple[list[Any], list[Skipped], Counter[str]]:
    """What comes back of a format in a file, what never got into it, and what was lost."""
    lost, others = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        with table_writer(path, EXPORTS[name].row) as write:
            for row in exported(rows, name, lost):
                if isinstance(row, Skipped):
                    others.append(row)
                else:
                    write(row)
        return list(read(path)), others, lost


@pytest.mark.parametrize("name", [name for name, export in EXPORTS.items() if export.source == "preferences"])
@given(pairs=PAIRS, suffix=st.sampled_from([".jsonl", ".json", ".parquet"]))
def test_a_preference_comes_back_with_all_that_the_format_keeps(
    pairs: list[Preference], name: str, suffix: str
) -> None:
    export = EXPORTS[name]
    found, others, lost = there_and_back(pairs, name, suffix, iter_preferences)
    if name == "cai":
        assert (found, others, lost) == (pairs, [], {})
        return
    written = [pair for pair in pairs if not export.hard_labels or pair.p != 0.5]
    if name == "hh-rlhf":
        spoken = [[t["content"] for t in p.messages if t["role"] != "system"] + [p.chosen, p.rejected] for p in pairs]
        cut = [any(TURN.search(text) for text in texts) for texts in spoken]
        written = [pair for pair, is_cut in zip(pairs, cut, strict=True) if not is_cut and pair in written]
    assert len(others) == len(pairs) - len(written)
    assert len(found) == len(written)
    for pair, back in zip(written, found, strict=True):
        better = likelier(pair) or pair
        keeps_system = "system messages" in export.keeps
        assert back.messages == [t for t in pair.messages if keeps_system or t["role"] != "system"]
        assert (back.chosen, back.rejected) == (better.chosen, better.rejected)
        assert back.p == (0.5 if better.p == 0.5 else 1.0)
        assert (back.prompt_id == pair.prompt_id) or "ids" not in export.keeps
    assert lost["ids"] == (0 if "ids" in export.keeps else len(written))
    soft = [pair for pair in written if pair.p not in (0, 0.5, 1)]
    assert lost["soft labels"] == (0 if name == "ultrafeedback" else len(soft))  # which has them as scores
    assert lost["weights"] == sum(pair.weight != 1 for pair in written)


@pytest.mark.parametrize("name", [name for name, export in EXPORTS.items() if export.source == "completions"])
@given(
    answers=st.lists(st.builds(Demonstration, prompt_id=TEXT, messages=conversations(), completion=TEXT), max_size=3),
    suffix=st.sampled_from([".jsonl", ".parquet"]),
)
def test_an_answer_to_learn_comes_back(answers: list[Demonstration], name: str, suffix: str) -> None:
    found, others, lost = there_and_back(answers, name, suffix, iter_completions)
    assert [(row.messages, row.completion) for row in found] == [(row.messages, row.completion) for row in answers]
    assert (others, lost["ids"]) == ([], len(answers))


def test_the_likelier_answer_is_the_chosen_one() -> None:
    asked: list[Message] = [Message(role="user", content="Why?")]
    for p, expected in ((0.75, ("so", "no", 0.75)), (0.25, ("no", "so", 0.75)), (0.5, None)):
        pair = likelier(Preference(prompt_id="x", messages=asked, chosen="so", rejected="no", p=p, source="judge"))
        assert (pair and (pair.chosen, pair.rejected, pair.p)) == expected


@given(pairs=PAIRS)
def test_annotated_pairs_come_back_as_the_default_annotator_has_them(pairs: list[Preference]) -> None:
    made = [evaluation_formats.to_annotated_comparison(pair, number) for number, pair in enumerate(pairs)]
    written = [pair for pair, row in zip(pairs, made, strict=True) if not isinstance(row, Skipped)]
    document = evaluation_formats.annotated_document([row for row in made if not isinstance(row, Skipped)], "d", {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        found = list(iter_preferences(path)) if written else []
    for pair, back in zip(written, found, strict=True):
        better = likelier(pair)
        assert isinstance(back, Preference)
        if better is None:
            assert ({back.chosen, back.rejected}, back.p) == ({pair.chosen, pair.rejected}, 0.5)
        else:
            assert back.messages == [turn for turn in pair.messages if turn["role"] != "system"]
            assert (back.chosen, back.rejected, back.p) == (better.chosen, better.rejected, better.p)


@pytest.mark.parametrize(
    ("change", "p"),
    [({}, 0.75), ({"description": "Pairs of others"}, 1.0), ({"default_annotator": "b"}, 1.0)],
)
def test_the_probability_beside_annotated_pairs_is_read_of_our_own_documents_alone(
    tmp_path: Path, change: dict[str, str], p: float
) -> None:
    asked: list[Message] = [Message(role="user", content="Why?")]
    said = Verdict(principle_id="b", principle_hash="h", p_forward=0.9, p_reverse=0.9, non_option_mass=0)
    pair = Preference(
        prompt_id="x", messages=asked, chosen="so", rejected="no", p=0.25, source="judge", verdicts=[said]
    )
    document = evaluation_formats.annotated_document([evaluation_formats.to_annotated_comparison(pair, 0)], "d", {})  # type: ignore[list-item]
    document["metadata"] |= change
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    [back] = iter_preferences(path)
    assert isinstance(back, Preference)
    assert back.p == p
    assert back.chosen == ("so" if "default_annotator" in change else "no")


def test_an_invalid_probability_in_a_document_of_cai_is_an_error(tmp_path: Path) -> None:
    asked: list[Message] = [Message(role="user", content="Why?")]
    pair = Preference(prompt_id="x", messages=asked, chosen="so", rejected="no", p=1, source="judge")
    row = evaluation_formats.to_annotated_comparison(pair, 0)
    assert isinstance(row, dict)
    path = tmp_path / "pairs.json"
    for wrong in ({"p": "two"}, {"p": "2"}, {"p": "nan"}, {}):
        changed = {**row, "metadata": {"source": "judge", **wrong}}
        path.write_text(json.dumps(evaluation_formats.annotated_document([changed], "d", {})), encoding="utf-8")
        with pytest.raises(CaiError, match=r"comparison 1: metadata\.p: expected a number from 0 to 1"):
            list(iter_preferences(path))


def test_verdicts_become_annotators_by_the_words_of_their_principle() -> None:
    said = Verdict(principle_id="a", principle_hash="h", p_forward=0.1, p_reverse=0.3, non_option_mass=0)
    tie = Verdict(principle_id="b", principle_hash="h", p_forward=0.5, p_reverse=0.5, non_option_mass=0)
    asked: list[Message] = [Message(role="user", content="Why?")]
    both = Preference(
        prompt_id="x", messages=asked, chosen="so", rejected="no", p=0.75, source="judge", verdicts=[said, tie]
    )
    alone = Preference(prompt_id="y", messages=asked, chosen="so", rejected="no", p=1, source="human")
    listed = [evaluation_formats.to_annotated_comparison(pair, n) for n, pair in enumerate([both, alone])]
    assert not any(isinstance(row, Skipped) for row in listed)
    document = evaluation_formats.annotated_document(listed, "d", {"a": "Which is kinder?"})  # type: ignore[arg-type]
    assert [(a["description"], a["type"]) for a in document["annotators"].values()][1:] == [
        ("Which is kinder?", "principle"), ("b", "principle"),
    ]  # fmt: skip
    first, second = document["comparisons"]
    chosen = "a" if first["response_a"]["text"] == "so" else "b"
    assert first["annotations"] == {
        "ba751e7b": {"pref": chosen},
        "a": {"pref": "b" if chosen == "a" else "a"},
        "b": {"pref": None, "no_pref_reason": "tie"},
    }
    assert second["annotations"]["a"] == {"pref": None, "no_pref_reason": "not_applicable"}
    assert (first["prompt"], first["metadata"]["p"], document["annotators"]["ba751e7b"]["type"]) == (
        "Why?",
        "0.75",
        "ai",
    )


def test_pairs_stand_in_either_place() -> None:
    asked: list[Message] = [Message(role="user", content="Why?")]
    rows = [
        evaluation_formats.to_annotated_comparison(
            Preference(prompt_id=str(n), messages=asked, chosen="so", rejected="no", p=1, source="human"), n
        )
        for n in range(200)
    ]
    assert 70 < sum(isinstance(row, dict) and row["response_a"]["text"] == "so" for row in rows) < 130
