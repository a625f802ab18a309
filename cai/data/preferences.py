"""Preferences in any file, read into Preference rows, or into Candidates: answers that wait for a judge.

A row has one of the formats below; `p` (1), `weight` (1), `tags` and `id` are optional in the first five, and a
`subset` (RewardBench) becomes a tag.

    cai                 a row of a run's preferences.jsonl
    cai-ranking         a row of the rankings.jsonl that `cai judge` writes
    responses           {"prompt", "responses"}: a ranking, best first, as all its pairs (InstructGPT, arXiv:2203.02155
                        §3.5); for a judge, unless `ranked`, 2 to 26 answers without an order
    correct-incorrect   {"prompt", "corrects", "incorrects"}: the HHH evaluations, or whole answers
                        (cai/data/evaluation_formats.py)
    pair                {"chosen", "rejected"}, with "prompt" or without: texts, transcripts (hh-rlhf), or turns (trl,
                        ultrafeedback_binarized); the answers alone, or whole conversations
    cai-conversation    {"init_prompt", "chosen", "rejected", …} (cai/data/chat_formats.py)
    openai-preference   {"input", "preferred_output", "non_preferred_output"} (cai/data/chat_formats.py)
    alpaca-eval         {"instruction", "output_1", "output_2", "preference"} (cai/data/evaluation_formats.py)
    annotated-pairs     {"metadata", "annotators", "comparisons"} (cai/data/evaluation_formats.py)
    kto                 {"prompt", "completion", "label"}: every desirable with every undesirable answer to a prompt
"""

import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.config.validation import describe
from cai.data import chat_formats, evaluation_formats
from cai.data.files import Place, RawRow
from cai.data.formats import (
    PROMPTED,
    SHARED,
    Format,
    ReadSummary,
    RowFields,
    is_transcript,
    is_turns,
    plain_turns,
    read_row,
    row_id,
    row_prompt,
    row_tags,
    rows_without_nulls,
    skipped,
    split_skipped,
    turn_problem,
    turns,
    turns_fingerprint,
    with_system,
)
from cai.data.jsonl import parse_row
from cai.data.records import Messages, Preference, Prompt, Ranking, Skipped
from cai.stats.logistic import sigmoid

LABEL = (*PROMPTED, "p", "weight")


def read_preferences(path: Path) -> tuple[list[Preference], list[Skipped]]:
    """(the usable pairs of a file, the skipped rows with reason and position).

    Raises: CaiError naming file, row and field for a row of an unknown format, or a file without rows.
    """
    kept, skips = split_skipped(iter_preferences(path))
    if not kept and not skips:
        raise CaiError(f"{path}: no preferences in this file")
    return kept, skips


def iter_preferences(path: Path, summary: ReadSummary | None = None) -> Iterator[Preference | Skipped]:
    """`read_preferences` row by row."""
    for place, value in preference_rows(path):
        for pair in row_pairs(place, value, summary):
            if isinstance(pair, Preference) and (reason := skip_reason(pair)):
                yield Skipped(prompt_id=pair.prompt_id, stage=place.short, reason=reason)
            else:
                yield pair


def preference_rows(path: Path) -> Iterator[tuple[Place, RawRow]]:
    """The rows of a file as `single_rows`, with labelled completions of one prompt joined into one row."""
    return _joined(single_rows(path))


def single_rows(path: Path) -> Iterator[tuple[Place, RawRow]]:
    """The rows of a file; a document of annotated pairs counts as one row per comparison."""
    for place, value in rows_without_nulls(path):
        yield from evaluation_formats.annotated_comparisons(place, value)


def skip_reason(pair: Preference) -> str | None:
    """Why a pair is no training example; None if it is one."""
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "an answer is empty"
    if pair.chosen == pair.rejected:
        return "chosen equals rejected"
    return turn_problem(pair.messages)


def row_pairs(place: Place, value: RawRow, summary: ReadSummary | None = None) -> Iterator[Preference | Skipped]:
    """The pairs of one row, usable or not; or one Skipped if it has none.

    Raises: CaiError naming file, row and field.
    """
    pairs = read_row(FORMATS, place, value, "preference", summary)
    if isinstance(pairs, Skipped):
        yield pairs
    else:
        yield from (parse_row(place, pair, Preference) for pair in pairs)


def row_responses(place: Place, value: RawRow) -> list[str]:
    """The `responses` of a row; raises CaiError for anything but two or more texts."""
    responses = value["responses"]
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
        raise CaiError(f"{place}: responses: expected a list of at least two texts, best first")
    return responses


def _joined(placed: Iterator[tuple[Place, RawRow]]) -> Iterator[tuple[Place, RawRow]]:
    """trl's unpaired preferences joined by prompt, wherever in the file they are; other rows unchanged.

    https://huggingface.co/docs/trl/dataset_formats#unpaired-preference. The joined rows come last, in the order of
    their first rows; until then they wait in a temporary SQLite database, which spills to disk once it is large.
    """
    with closing(sqlite3.connect("")) as waiting:
        waiting.execute("CREATE TABLE answers (number INTEGER PRIMARY KEY, prompt, good, answer, file, at, row)")
        for place, value in placed:
            if "completion" not in value or "label" not in value:
                yield place, value
                continue
            if not isinstance(value["label"], bool):
                raise CaiError(f"{place}: label: expected true or false, found {describe(value['label'])}")
            answer = value["label"], _answer(place, "completion", value["completion"])
            kept = (turns_fingerprint(row_prompt(place, value)), *answer, str(place.path), place.at)
            row = json.dumps(value, default=str)  # what JSON does not know is in fields that are not read
            waiting.execute("INSERT INTO answers VALUES (NULL, ?, ?, ?, ?, ?, ?)", (*kept, row))
        by_prompt = waiting.execute(
            "SELECT min(number) OVER (PARTITION BY prompt) AS first, good, answer, file, at, row FROM answers "
            "ORDER BY first, number"
        )
        for _, group in itertools.groupby(by_prompt, key=itemgetter(0)):
            answers = list(group)
            has_both = len({good for _, good, *_ in answers}) == 2
            for same in [answers] if has_both else [[answer] for answer in answers]:
                good, bad = ([text for _, is_good, text, *_ in same if is_good == kind] for kind in (True, False))
                *_, file, at, row = same[0]
                yield Place(Path(file), at), {**json.loads(row), "good": good, "bad": bad}


def _whole(place: Place, value: RawRow) -> RowFields:
    return [value]


def _ranked_pairs(place: Place, value: RawRow) -> RowFields:
    """All pairs of a judge's ranking; the difference of two strengths is the log-odds of the better answer."""
    ranking = parse_row(place, value, Ranking)
    fields = ranking.model_dump(include={"prompt_id", "messages", "tags", "model", "judge"})
    fields |= {"source": "judge", "seeds": [ranking.seed]}
    answers = zip(ranking.responses, ranking.strengths, strict=True)
    return [
        {**fields, "chosen": chosen, "rejected": rejected, "p": sigmoid(higher - lower)}
        for (chosen, higher), (rejected, lower) in itertools.combinations(answers, 2)
    ]


def _ranking(place: Place, value: RawRow) -> RowFields:
    pairs = itertools.combinations(row_responses(place, value), 2)
    return [_fields(place, value, row_prompt(place, value), *pair) for pair in pairs]


def _options(place: Place, value: RawRow) -> RowFields:
    pairs = evaluation_formats.option_pairs(place, value)
    return pairs if isinstance(pairs, Skipped) else [_fields(place, value, *pair) for pair in pairs]


def _good_and_bad(place: Place, value: RawRow) -> RowFields:
    pairs = list(itertools.product(value["good"], value["bad"]))
    if not pairs:
        return skipped(place, value, "its prompt has no answer with the other label: a pair needs a good and a bad one")
    return [_fields(place, value, row_prompt(place, value), *pair) for pair in pairs]


def _pair(place: Place, value: RawRow) -> RowFields:
    chosen, rejected = value["chosen"], value["rejected"]
    if value.get("score_chosen") is not None and value.get("score_chosen") == value.get("score_rejected"):
        value = {"p": 0.5, **value}  # ultrafeedback_binarized picks `chosen` at random among equal scores
    has_prompt = "prompt" in value or "messages" in value
    if has_prompt and not _is_conversation(chosen) and not _is_conversation(rejected):
        answers = (_answer(place, key, value[key]) for key in ("chosen", "rejected"))
        return [_fields(place, value, row_prompt(place, value), *answers)]
    (messages, good), (other, bad) = (_conversation(place, key, value[key]) for key in ("chosen", "rejected"))
    if messages != other:
        return skipped(place, value, "chosen and rejected differ in more than the last turn")
    return [_fields(place, value, with_system(place, value, messages), good, bad)]


def _is_conversation(value: Any) -> bool:
    return is_transcript(value) or (is_turns(value) and len(value) > 1)


def _conversation(place: Place, key: str, value: Any) -> tuple[Messages, str]:
    """(the turns before the last, the text of the last) of a whole conversation."""
    conversation = turns(value) if is_transcript(value) else plain_turns(value) if is_turns(value) else []
    if len(conversation) < 2 or conversation[-1]["role"] != "assistant":
        raise CaiError(
            f"{place}: {key}: without a prompt, expected a transcript (\\n\\nHuman: …\\n\\nAssistant: …) or a "
            "list of turns, ending with the assistant's"
        )
    return conversation[:-1], conversation[-1]["content"]


def _answer(place: Place, key: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if is_turns(value) and len(value) == 1:
        return str(value[0]["content"])
    raise CaiError(f"{place}: {key}: expected a text or one turn of the assistant's, found {describe(value)}")


def _fields(place: Place, value: RawRow, messages: Messages, chosen: str, rejected: str) -> dict[str, Any]:
    fields = {"prompt_id": row_id(value, messages), "tags": row_tags(place, value), "source": "human", "p": 1.0}
    labels = {key: field for key, field in value.items() if key in ("p", "weight")}
    return {**fields, **labels, "messages": messages, "chosen": chosen, "rejected": rejected}


OPTIONS = (*SHARED, "p", "weight", "text_correct", "text_incorrect")
CONVERSATION = tuple(chat_formats.ConversationRow.__annotations__)
PAIR = (*LABEL, "prompt", "messages", "score_chosen", "score_rejected")
KTO = "each good answer is paired with each bad answer to the same prompt; these count as one row"
FORMATS = (
    Format("cai", ("prompt_id", "messages", "chosen", "rejected", "p", "source"), _whole, (*Preference.model_fields,)),
    Format("cai-ranking", ("prompt_id", "messages", "responses", "strengths"), _ranked_pairs, (*Ranking.model_fields,)),
    Format("responses", ("prompt|messages", "responses"), _ranking, LABEL, plain=True),
    Format("correct-incorrect", ("prompt", "corrects", "incorrects"), _options, OPTIONS),
    Format("kto", ("prompt|messages", "completion", "label"), _good_and_bad, (*LABEL, "good", "bad"), note=KTO),
    Format(
        "openai-preference", ("input", "preferred_output", "non_preferred_output"), chat_formats.read_openai_preference
    ),
    Format(
        "alpaca-eval",
        ("instruction", "output_1", "output_2"),
        evaluation_formats.read_alpaca_annotation,
        evaluation_formats.ALPACA_FIELDS,
    ),
    Format(
        "annotated-pairs",
        ("response_a", "response_b", "annotations"),
        evaluation_formats.read_annotated_pair,
        evaluation_formats.ANNOTATED_FIELDS,
    ),
    Format("cai-conversation", ("init_prompt", "chosen", "rejected"), _pair, (*PAIR, *CONVERSATION)),
    Format("pair", ("chosen", "rejected"), _pair, PAIR, plain=True),
)


class Candidates(NamedTuple):
    """Answers to one prompt; one of white space alone is "". `input_p` is the file's P(the first of two is better)."""

    place: str  # file and row
    prompt: Prompt
    answers: list[str]
    input_p: float | None
    model: str  # engine fingerprint of the policy that wrote them; empty where the file does not say


def read_candidates(path: Path, ranked: bool) -> Iterator[Candidates | Skipped]:
    """The sets of answers in a file, row by row; rows of `responses` are rankings if `ranked`, else one set each.

    Raises: CaiError naming file, line and field.
    """
    for place, value in preference_rows(path):
        if "responses" in value and not ranked:
            sets: Iterator[Candidates | Skipped] = iter([_set(place, value)])
        else:
            sets = (
                Candidates(
                    place.short,
                    Prompt(id=pair.prompt_id, messages=pair.messages, tags=pair.tags),
                    [_text(pair.chosen), _text(pair.rejected)],
                    pair.p,
                    pair.model,
                )
                if not isinstance(pair, Skipped)
                else pair
                for pair in row_pairs(place, value)
            )
        for item in sets:
            if isinstance(item, Candidates) and (problem := turn_problem(item.prompt.messages)):
                yield Skipped(prompt_id=item.prompt.id, stage=item.place, reason=problem)
            else:
                yield item


def _set(place: Place, value: RawRow) -> Candidates:
    responses = row_responses(place, value)
    if len(responses) > len(ascii_uppercase):
        raise CaiError(
            f"{place}: responses: a judge chooses among 2 to {len(ascii_uppercase)} answers, found {len(responses)}"
        )
    messages = row_prompt(place, value)
    fields = {"id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}
    answers = [_text(answer) for answer in responses]
    return Candidates(place.short, parse_row(place, fields, Prompt), answers, None, str(value.get("model", "")))


def _text(answer: str) -> str:
    return answer if answer.strip() else ""
