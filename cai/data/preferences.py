"""Preferences in any file, read into Preference rows.

A row is one of the forms below; `p` (1), `weight` (1), `tags` and `id` are optional in the first five, and a `subset`
(RewardBench) becomes a tag.

    cai                 a row of a run's preferences.jsonl
    cai-ranking         a row of the rankings.jsonl that `cai judge` writes
    responses           {"prompt", "responses"}: a ranking, the best first, as all its pairs (InstructGPT,
                        arXiv:2203.02155 §3.5)
    correct-incorrect   {"prompt", "corrects", "incorrects"}: the HHH evaluations, or whole answers
                        (cai/data/multiple_choice.py)
    pair                {"chosen", "rejected"}, with "prompt" or without: texts, transcripts (hh-rlhf), or turns (trl,
                        ultrafeedback_binarized); the answers alone, or whole conversations
    cai-conversation    {"init_prompt", "chosen", "rejected", …} (cai/data/cai_conversation.py)
    openai-preference   {"input", "preferred_output", "non_preferred_output"} (cai/data/openai_chat.py)
    alpaca-eval         {"instruction", "output_1", "output_2", "preference"} (cai/data/alpaca_eval.py)
    annotated-pairs     {"metadata", "annotators", "comparisons"} (cai/data/annotated_pairs.py)
    kto                 {"prompt", "completion", "label"}: every good with every bad answer to a prompt
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
from cai.config.hashing import fingerprint
from cai.config.validation import found
from cai.data import alpaca_eval, annotated_pairs, cai_conversation, openai_chat
from cai.data.files import Place, RowOfFile
from cai.data.forms import (
    OWN,
    Form,
    Read,
    Seen,
    is_transcript,
    is_turns,
    parted,
    placed_rows,
    plain_turns,
    read_row,
    row_id,
    row_prompt,
    row_tags,
    skipped,
    turn_fault,
    turns,
)
from cai.data.jsonl import parse_row
from cai.data.multiple_choice import option_pairs
from cai.data.records import Messages, Preference, Prompt, Ranking, Skipped
from cai.stats.logistic import sigmoid

LABEL = (*OWN, "p", "weight")


def read_preferences(path: Path) -> tuple[list[Preference], list[Skipped]]:
    """All pairs of a file that can teach something, and the others with the reason and the place they stand at.

    Raises: CaiError naming file, row and field for a row that is of no known form, or a file without rows.
    """
    kept, others = parted(iter_preferences(path))
    if not kept and not others:
        raise CaiError(f"{path}: no preferences in this file")
    return kept, others


def iter_preferences(path: Path, seen: Seen | None = None) -> Iterator[Preference | Skipped]:
    """The same, row by row."""
    for place, value in preference_rows(path):
        for pair in row_pairs(place, value, seen):
            if isinstance(pair, Preference) and (reason := unfit(pair)):
                yield Skipped(prompt_id=pair.prompt_id, stage=place.short, reason=reason)
            else:
                yield pair


def preference_rows(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    """The rows of a file; those of documents one by one, and good and bad answers to one prompt joined."""
    return _joined(single_rows(path))


def single_rows(path: Path) -> Iterator[tuple[Place, RowOfFile]]:
    """The rows of a file, those of documents one by one."""
    for place, value in placed_rows(path):
        yield from annotated_pairs.comparisons(place, value)


def unfit(pair: Preference) -> str | None:
    """Why a pair can teach nothing, or None if it can."""
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "an answer is empty"
    if pair.chosen == pair.rejected:
        return "chosen equals rejected"
    return turn_fault(pair.messages)


def row_pairs(place: Place, value: RowOfFile, seen: Seen | None = None) -> Iterator[Preference | Skipped]:
    """The pairs that one row stands for, fit to teach or not, or the one reason why it stands for none.

    Raises: CaiError naming file, row and field.
    """
    pairs = read_row(FORMS, place, value, "preference", seen)
    if isinstance(pairs, str):
        yield skipped(place, value, pairs)
    else:
        yield from (parse_row(place, pair, Preference) for pair in pairs)


def row_responses(place: Place, value: RowOfFile) -> list[str]:
    """The `responses` of a row; raises CaiError for anything but two or more texts."""
    responses = value["responses"]
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
        raise CaiError(f"{place}: responses: expected a list of at least two texts, the best first")
    return responses


def _joined(placed: Iterator[tuple[Place, RowOfFile]]) -> Iterator[tuple[Place, RowOfFile]]:
    """Rows of trl's unpaired preferences joined by their prompt, wherever in the file they stand; others as they are.

    https://huggingface.co/docs/trl/dataset_formats#unpaired-preference. The joined ones come last, in the order of
    their first rows; until then they wait in a temporary database, which lies on disk as soon as it is large.
    """
    with closing(sqlite3.connect("")) as waiting:
        waiting.execute("CREATE TABLE answers (number INTEGER PRIMARY KEY, prompt, good, answer, file, at, row)")
        for place, value in placed:
            if "completion" not in value or "label" not in value:
                yield place, value
                continue
            if not isinstance(value["label"], bool):
                raise CaiError(f"{place}: label: expected true or false, found {found(value['label'])}")
            answer = value["label"], _answer(place, "completion", value["completion"])
            kept = (fingerprint(row_prompt(place, value)), *answer, str(place.path), place.at)
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


def _whole(place: Place, value: RowOfFile) -> Read:
    return [value]


def _judged_ranking(place: Place, value: RowOfFile) -> Read:
    """All pairs of a ranking that a judge made; its strengths tell how much better the better answers are."""
    ranking = parse_row(place, value, Ranking)
    made = ranking.model_dump(include={"prompt_id", "messages", "tags", "model", "judge"})
    made |= {"source": "judge", "seeds": [ranking.seed]}
    answers = zip(ranking.responses, ranking.strengths, strict=True)
    return [
        {**made, "chosen": chosen, "rejected": rejected, "p": sigmoid(higher - lower)}
        for (chosen, higher), (rejected, lower) in itertools.combinations(answers, 2)
    ]


def _ranking(place: Place, value: RowOfFile) -> Read:
    better_first = itertools.combinations(row_responses(place, value), 2)
    return [_fields(place, value, row_prompt(place, value), *pair) for pair in better_first]


def _options(place: Place, value: RowOfFile) -> Read:
    pairs = option_pairs(place, value)
    return pairs if isinstance(pairs, str) else [_fields(place, value, *pair) for pair in pairs]


def _good_and_bad(place: Place, value: RowOfFile) -> Read:
    pairs = list(itertools.product(value["good"], value["bad"]))
    if not pairs:
        return "no answer of the other label to its prompt: a pair needs a good and a bad one"
    return [_fields(place, value, row_prompt(place, value), *pair) for pair in pairs]


def _pair(place: Place, value: RowOfFile) -> Read:
    chosen, rejected = value["chosen"], value["rejected"]
    if value.get("score_chosen") is not None and value.get("score_chosen") == value.get("score_rejected"):
        value = {"p": 0.5, **value}  # ultrafeedback_binarized draws the chosen one of equals by lot
    has_prompt = "prompt" in value or "messages" in value
    if has_prompt and not _is_conversation(chosen) and not _is_conversation(rejected):
        answers = (_answer(place, key, value[key]) for key in ("chosen", "rejected"))
        return [_fields(place, value, row_prompt(place, value), *answers)]
    (messages, good), (other, bad) = (_conversation(place, key, value[key]) for key in ("chosen", "rejected"))
    if messages != other:
        return "chosen and rejected differ in more than the last turn"
    return [_fields(place, value, messages, good, bad)]


def _is_conversation(value: Any) -> bool:
    return is_transcript(value) or (is_turns(value) and len(value) > 1)


def _conversation(place: Place, key: str, value: Any) -> tuple[Messages, str]:
    """(the turns before the last, the text of the last) of a whole conversation."""
    said = turns(value) if is_transcript(value) else plain_turns(value) if is_turns(value) else []
    if len(said) < 2 or said[-1]["role"] != "assistant":
        raise CaiError(
            f"{place}: {key}: without a prompt, expected a transcript (\\n\\nHuman: …\\n\\nAssistant: …) or a "
            "list of turns, ending with the assistant's"
        )
    return said[:-1], said[-1]["content"]


def _answer(place: Place, key: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if is_turns(value) and len(value) == 1:
        return str(value[0]["content"])
    raise CaiError(f"{place}: {key}: expected a text or one turn of the assistant's, found {found(value)}")


def _fields(place: Place, value: RowOfFile, messages: Messages, chosen: str, rejected: str) -> dict[str, Any]:
    named = {"prompt_id": row_id(value, messages), "tags": row_tags(place, value), "source": "human", "p": 1.0}
    labels = {key: field for key, field in value.items() if key in ("p", "weight")}
    return {**named, **labels, "messages": messages, "chosen": chosen, "rejected": rejected}


OPTIONS = (*LABEL, "text_correct", "text_incorrect")
CONVERSATION = tuple(cai_conversation.Row.__annotations__)
PAIR = (*LABEL, "prompt", "messages", "score_chosen", "score_rejected")
KTO = "every good answer with every bad one to the same prompt; these count as one row"
FORMS = (
    Form("cai", ("prompt_id", "messages", "chosen", "rejected", "p", "source"), _whole, (*Preference.model_fields,)),
    Form("cai-ranking", ("prompt_id", "messages", "responses", "strengths"), _judged_ranking, (*Ranking.model_fields,)),
    Form("responses", ("prompt|messages", "responses"), _ranking, LABEL, plain=True),
    Form("correct-incorrect", ("prompt", "corrects", "incorrects"), _options, OPTIONS),
    Form("kto", ("prompt|messages", "completion", "label"), _good_and_bad, (*LABEL, "good", "bad"), note=KTO),
    Form("openai-preference", ("input", "preferred_output", "non_preferred_output"), openai_chat.read_pair),
    Form("alpaca-eval", ("instruction", "output_1", "output_2"), alpaca_eval.read_pair, alpaca_eval.ALSO),
    Form(
        "annotated-pairs", ("response_a", "response_b", "annotations"), annotated_pairs.read_pair, annotated_pairs.ALSO
    ),
    Form("cai-conversation", ("init_prompt", "chosen", "rejected"), _pair, (*PAIR, *CONVERSATION)),
    Form("pair", ("chosen", "rejected"), _pair, PAIR, plain=True),
)


# Answers that wait for a judge: every form of preference file, its labels put aside, and sets of answers.
#
# A row `{"prompt", "responses": [2 to 26 texts]}` is one set to be judged; elsewhere (cai/data/preferences.py) it is a
# ranking, and is read as such where `ranked` says so.


class Candidates(NamedTuple):
    """Answers to one prompt; one of white space alone is "". `input_p` is the file's P(the first of two is better)."""

    place: str  # file and row
    prompt: Prompt
    answers: list[str]
    input_p: float | None
    model: str  # engine fingerprint of who wrote them, where the file knows it


def read_candidates(path: Path, ranked: bool) -> Iterator[Candidates | Skipped]:
    """What a file holds for a judge, row by row; a conversation that cannot be answered is left out.

    Raises: CaiError naming file, line and field.
    """
    for place, value in preference_rows(path):
        if "responses" in value and not ranked:
            found: Iterator[Candidates | Skipped] = iter([_set(place, value)])
        else:
            found = (
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
        for item in found:
            if isinstance(item, Candidates) and (fault := turn_fault(item.prompt.messages)):
                yield Skipped(prompt_id=item.prompt.id, stage=item.place, reason=fault)
            else:
                yield item


def _set(place: Place, value: RowOfFile) -> Candidates:
    responses = row_responses(place, value)
    if len(responses) > len(ascii_uppercase):
        raise CaiError(
            f"{place}: responses: a judge chooses among 2 to {len(ascii_uppercase)} answers, found {len(responses)}"
        )
    messages = row_prompt(place, value)
    named = {"id": row_id(value, messages), "messages": messages, "tags": row_tags(place, value)}
    answers = [_text(answer) for answer in responses]
    return Candidates(place.short, parse_row(place, named, Prompt), answers, None, str(value.get("model", "")))


def _text(answer: str) -> str:
    return answer if answer.strip() else ""
