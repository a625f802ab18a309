"""Preferences in any file, read into Preference rows.

A row is one of the forms below; `p` (1), `weight` (1), `tags` and `id` are optional in the first five, and a `subset`
(RewardBench) becomes a tag.

    cai                 a row of a run's preferences.jsonl
    cai-ranking         a row of the rankings.jsonl that `cai judge` writes
    responses           {"prompt", "responses"}: a ranking, the best first, as all its pairs (InstructGPT,
                        arXiv:2203.02155 §3.5)
    correct-incorrect   {"prompt", "corrects", "incorrects"}: the HHH evaluations, or whole answers
                        (cai/formats/options.py)
    pair                {"chosen", "rejected"}, with "prompt" or without: texts, transcripts (hh-rlhf), or turns (trl,
                        ultrafeedback_binarized); the answers alone, or whole conversations
    cai-conversation    {"init_prompt", "chosen", "rejected", …} (cai/formats/cai_conversation.py)
    openai-preference   {"input", "preferred_output", "non_preferred_output"} (cai/formats/openai_chat.py)
    alpaca-eval         {"instruction", "output_1", "output_2", "preference"} (cai/formats/alpaca_eval.py)
    annotated-pairs     {"metadata", "annotators", "comparisons"} (cai/formats/annotated_pairs.py)
    kto                 {"prompt", "completion", "label"}: every good with every bad answer to a prompt
"""

import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.faults import found
from cai.formats import alpaca_eval, annotated_pairs, cai_conversation, openai_chat
from cai.formats.files import Place, RowOfFile
from cai.formats.forms import (
    OWN,
    Form,
    Read,
    Seen,
    is_turns,
    left_out,
    parted,
    placed_rows,
    plain_turns,
    read_row,
    row_id,
    row_prompt,
    row_tags,
    turn_fault,
)
from cai.formats.jsonl import parse_row
from cai.formats.options import option_pairs
from cai.formats.transcripts import is_transcript, turns
from cai.hashing import fingerprint
from cai.odds import sigmoid
from cai.records import LeftOut, Messages, Preference, Ranking

LABEL = (*OWN, "p", "weight")


def read_preferences(path: Path) -> tuple[list[Preference], list[LeftOut]]:
    """All pairs of a file that can teach something, and the others with the reason and the place they stand at.

    Raises: CaiError naming file, row and field for a row that is of no known form, or a file without rows.
    """
    kept, others = parted(iter_preferences(path))
    if not kept and not others:
        raise CaiError(f"{path}: no preferences in this file")
    return kept, others


def iter_preferences(path: Path, seen: Seen | None = None) -> Iterator[Preference | LeftOut]:
    """The same, row by row."""
    for place, value in preference_rows(path):
        for pair in row_pairs(place, value, seen):
            if isinstance(pair, Preference) and (reason := unfit(pair)):
                yield LeftOut(prompt_id=pair.prompt_id, stage=place.short, reason=reason)
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


def row_pairs(place: Place, value: RowOfFile, seen: Seen | None = None) -> Iterator[Preference | LeftOut]:
    """The pairs that one row stands for, fit to teach or not, or the one reason why it stands for none.

    Raises: CaiError naming file, row and field.
    """
    pairs = read_row(FORMS, place, value, "preference", seen)
    if isinstance(pairs, str):
        yield left_out(place, value, pairs)
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
