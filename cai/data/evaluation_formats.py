"""External formats of evaluation sets: AlpacaEval's files, multiple-choice questions, annotated pairs.

AlpacaEval (https://github.com/tatsu-lab/alpaca_eval):

    outputs       [{"instruction", "output", "generator", "dataset"}, …], as in example/outputs.json
    annotations   [{"instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference"}, …]

`preference` runs from 1 (output_1) to 2 (output_2), so that p(output_2 is better) = preference − 1; 0 and 1.5 are draws
(src/alpaca_eval/metrics/helpers.py), and null is a failed annotation. An `input` follows its instruction.

Multiple choice (HHH evaluations, Askell et al. 2021, arXiv:2112.00861):
https://github.com/anthropics/ConstitutionalHarmlessnessPaper/blob/main/evals/438HHHEvaluations.jsonl

A row is `{"prompt", "corrects": [" (B)"], "incorrects": [" (A)"]}`. The prompt holds the conversation and then the
options: a line `… Options:`, and ` (A) [[[…]]]` for each. With one correct and one incorrect option, `text_correct` and
`text_incorrect` may hold both conversations whole, as transcripts; they take precedence, since they need no parsing of
options. Where `corrects` and `incorrects` are whole answers, as in prompts/RLMadisonFewShotPrompts.json, the prompt is
the conversation.

Annotated pairs, version 2, of Inverse Constitutional AI and Feedback Forensics (arXiv:2406.06560): one JSON object, as
src/inverse_cai/data/annotated_pairs_format.py of https://github.com/rdnfn/icai writes it:

    {"metadata": {"version": "2.0", "default_annotator": "ba751e7b", …},
     "annotators": {"ba751e7b": {"name", "description", "type"}, …},           type principle, human, unknown …
     "comparisons": [{"id", "prompt", "response_a": {"text", "model"}, "response_b": {…},
                      "annotations": {"ba751e7b": {"pref": "a"}, "…": {"pref": null, "no_pref_reason": "…"}}}, …]}

The default annotator's preference is the label; documents written by cai add its probability as `metadata.p`. A prompt
is a text, or a transcript if it has several turns.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from math import nan
from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint, uniform
from cai.config.validation import describe
from cai.data.files import Place, RawRow
from cai.data.formats import (
    TURN,
    RowFields,
    is_transcript,
    row_id,
    row_prompt,
    skipped,
    text,
    transcript,
    transcript_problem,
    turns,
)
from cai.data.records import BeforeAfter, Message, Messages, Preference, Skipped, Verdict

ALPACA_FIELDS = ("preference", "annotator", "input", "dataset", "id")
START = re.compile(r"\n[^\n]*Options:\n(?= ?\([A-Z]\) \[\[\[)")
OPTION = re.compile(r"^ ?\(([A-Z])\) \[\[\[(.*?)\]\]\](?=\n|\Z)", re.DOTALL | re.MULTILINE)
NAME = re.compile(r" ?\(([A-Z])\)")
OptionPair = tuple[Messages, str, str]
"""A conversation, the correct answer to it, and an incorrect one."""


def read_alpaca_prompt(place: Place, value: RawRow) -> RowFields:
    """The instruction of an AlpacaEval row; its `dataset` is the prompt's tag."""
    return [_alpaca_prompt(place, value)]


def read_alpaca_output(place: Place, value: RawRow) -> RowFields:
    """An output as a completion to learn."""
    return [{**_alpaca_prompt(place, value), "completion": text(place, value, "output")}]


def read_alpaca_annotation(place: Place, value: RawRow) -> RowFields:
    """An annotation as a soft label, the better output as `chosen`."""
    preference = value.get("preference")
    if preference is None:
        return skipped(place, value, "the annotation has no preference")
    try:
        p = 0.5 if float(preference) == 0 else float(preference) - 1
    except (TypeError, ValueError):
        p = -1.0
    if not 0 <= p <= 1:
        raise CaiError(f"{place}: preference: expected a number from 1 to 2, or 0 for a draw, found {preference}")
    first, second = (text(place, value, key) for key in ("output_1", "output_2"))
    (chosen, rejected), p = ((first, second), 1 - p) if p < 0.5 else ((second, first), p)
    label: dict[str, Any] = {"source": "judge", "judge": str(value.get("annotator", "")), "p": p}
    return [{**_alpaca_prompt(place, value), **label, "chosen": chosen, "rejected": rejected}]


def _alpaca_prompt(place: Place, value: RawRow) -> dict[str, Any]:
    instruction, context = text(place, value, "instruction"), value.get("input")
    content = f"{instruction}\n\n{context}" if context else instruction
    messages: Messages = [Message(role="user", content=content)]
    tags = [str(value["dataset"])] if "dataset" in value else []
    return {"prompt_id": row_id(value, messages), "messages": messages, "tags": tags}


class AlpacaEntries(NamedTuple):
    """One held-out prompt of a run: the new policy's output, the base model's, and the eval judge's annotation."""

    output: dict[str, Any]
    reference: dict[str, Any]
    annotation: dict[str, Any]


def alpaca_entries(comparison: BeforeAfter, before: str, after: str, annotator: str) -> AlpacaEntries | Skipped:
    """A comparison, named by its two generators and its annotator.

    Skipped where the prompt has several turns, and where there is no eval judge.
    """
    if len(comparison.messages) > 1:
        reason = "AlpacaEval takes a single instruction, and this prompt has several turns"
        return Skipped(prompt_id=comparison.prompt_id, stage="alpaca-eval", reason=reason)
    if comparison.p is None:
        reason = "AlpacaEval takes an annotator's preference, and the run has no eval judge (evaluate.judge: off)"
        return Skipped(prompt_id=comparison.prompt_id, stage="alpaca-eval", reason=reason)
    prompt = {"instruction": comparison.messages[0]["content"], "dataset": ", ".join(comparison.tags)}
    return AlpacaEntries(
        output={**prompt, "output": comparison.after, "generator": after},
        reference={**prompt, "output": comparison.before, "generator": before},
        annotation={
            **prompt,
            "output_1": comparison.before,
            "generator_1": before,
            "output_2": comparison.after,
            "generator_2": after,
            "annotator": annotator,
            "preference": 1 + comparison.p,
        },
    )


def option_pairs(place: Place, value: RawRow) -> list[OptionPair] | Skipped:
    """Every correct option paired with every incorrect one.

    Raises: CaiError naming file, line and field for a value of another type.
    """
    if all(_are_answers(value[key]) for key in ("corrects", "incorrects")):
        prompt = row_prompt(place, value)
        return [(prompt, good, bad) for good in value["corrects"] for bad in value["incorrects"]]
    correct, incorrect = (_letters(place, key, value) for key in ("corrects", "incorrects"))
    if both := sorted(set(correct) & set(incorrect)):
        return skipped(place, value, f"option ({both[0]}) is both correct and incorrect")
    if len(correct) == len(incorrect) == 1 and (pair := _whole_texts(place, value)) is not None:
        return skipped(place, value, pair) if isinstance(pair, str) else [pair]
    conversation = _options(text(place, value, "prompt"))
    if isinstance(conversation, str):
        return skipped(place, value, conversation)
    messages, texts = conversation
    if unknown := [letter for letter in (*correct, *incorrect) if letter not in texts]:
        return skipped(place, value, f"option ({unknown[0]}) is not among the prompt's options")
    return [(messages, texts[good], texts[bad]) for good in correct for bad in incorrect]


def _are_answers(values: Any) -> bool:
    is_list = isinstance(values, list) and bool(values)
    return is_list and all(isinstance(v, str) and len(v.strip()) > 3 and not NAME.fullmatch(v) for v in values)


def _letters(place: Place, key: str, value: RawRow) -> list[str]:
    names, expected = value.get(key), 'a list of options such as [" (A)"]'
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and NAME.fullmatch(n) for n in names):
        raise CaiError(f"{place}: {key}: expected {expected}, found {str(names)[:60]}")
    return list(dict.fromkeys(name.strip(" ()") for name in names))


def _whole_texts(place: Place, value: RawRow) -> OptionPair | str | None:
    """The pair of `text_correct` and `text_incorrect`, or why there is none; None where one is no transcript."""
    keys = ("text_correct", "text_incorrect")
    if any(value.get(key) is None for key in keys):
        return None
    texts = [text(place, value, key) for key in keys]
    if not all(is_transcript(text) for text in texts):
        return None
    (*messages, good), (*other, bad) = (_turns(text) for text in texts)
    if good["role"] != "assistant" or bad["role"] != "assistant":
        return None
    if messages != other:
        return "text_correct and text_incorrect differ in more than the last turn"
    return messages, good["content"], bad["content"]


def _options(prompt: str) -> tuple[Messages, dict[str, str]] | str:
    """The conversation inside a prompt and its options by letter, or why the prompt cannot be parsed."""
    start, first = START.search(prompt), TURN.search(prompt)
    if start is None:
        return "no options in the prompt; expected a line that ends with 'Options:', then ' (A) [[[…]]]' for each"
    if first is None or first.start() > start.start():
        return "no conversation before the options; expected \\n\\nHuman: …"
    options = OPTION.findall(prompt, start.end())
    if len({letter for letter, _ in options}) < len(options):
        return "two options have the same letter"
    return _turns(prompt[: start.start()]), {letter: text.strip() for letter, text in options}


def _turns(transcript: str) -> Messages:
    """Turns without surrounding white space, which these files have in front of the options."""
    return [Message(role=turn["role"], content=turn["content"].strip()) for turn in turns(transcript)]


ANNOTATED_FIELDS = ("id", "prompt", "default_annotator")
# Feedback Forensics looks for the label under this id (src/feedback_forensics/data/loader.py), the text's hash.
TIE = "tie"  # the reason why an annotator prefers neither answer
DEFAULT_ID, DEFAULT = "ba751e7b", "Default annotator from original dataset (from column `preferred_text`)"
METADATA = ("prompt_id", "p", "source", "tags")  # texts that Feedback Forensics can filter its tables by
MADE = "Preferences with the verdicts of principles, made by cai"  # identifies a document written by cai
ANNOTATED_KEEPS = {"ids", "tags", "soft labels", "verdicts and principles"}  # of cai/data/chat_formats.py's EXTRAS


def annotated_comparisons(place: Place, value: RawRow) -> Iterator[tuple[Place, RawRow]]:
    """The comparisons of a document as rows with their own places; any other row unchanged.

    Raises: CaiError for a document of another version, or without a default annotator.
    """
    if "comparisons" not in value or "annotators" not in value:
        yield place, value
        return
    metadata, annotators, listed = (value.get(key) for key in ("metadata", "annotators", "comparisons"))
    if not isinstance(metadata, dict) or not isinstance(annotators, dict) or not isinstance(listed, list):
        raise CaiError(f"{place}: expected the objects 'metadata' and 'annotators' and the list 'comparisons'")
    if not str(metadata.get("version", "1.0")).startswith("2."):
        raise CaiError(f"{place}: annotated pairs of version {metadata.get('version', '1.0')}; expected version 2.0")
    default = metadata.get("default_annotator")
    if not isinstance(default, str) or default not in annotators:
        raise CaiError(f"{place}: metadata.default_annotator: {describe(default)} is not among the annotators")
    annotator = annotators[default]
    if not isinstance(annotator, dict):
        raise CaiError(f"{place}: annotators.{default}: expected a JSON object, found {describe(annotator)}")
    written_by_cai = metadata.get("description") == MADE and default == DEFAULT_ID
    for number, comparison in enumerate(listed, 1):
        inside = Place(place.path, f"comparison {number}")
        if not isinstance(comparison, dict):
            raise CaiError(f"{inside}: expected a JSON object, found {str(comparison)[:60]}")
        present = {key: field for key, field in comparison.items() if field is not None}
        p = _probability(inside, comparison) if written_by_cai else 1.0
        yield inside, {**present, "default_annotator": {"id": default, **annotator, "p": p}}


def _probability(place: Place, comparison: RawRow) -> float:
    """P(the likelier answer is better) of a comparison that `to_comparison` wrote."""
    metadata = comparison.get("metadata")
    text = metadata.get("p") if isinstance(metadata, dict) else None
    try:
        p = float(str(text))
    except ValueError:
        p = nan
    if not 0 <= p <= 1:
        raise CaiError(f"{place}: metadata.p: expected a number from 0 to 1, found {describe(text)}")
    return max(p, 1 - p)


def read_annotated_pair(place: Place, value: RawRow) -> RowFields:
    """A comparison with the default annotator's label."""
    annotator, annotations = value["default_annotator"], value["annotations"]
    annotation = annotations.get(annotator["id"]) if isinstance(annotations, dict) else None
    if not isinstance(annotation, dict):
        return skipped(place, value, f"no annotation by the default annotator, {annotator['id']}")
    preferred = annotation.get("pref")
    tie = preferred is None and annotation.get("no_pref_reason") == TIE
    if preferred is None and not tie:
        reason = annotation.get("no_pref_reason", "no reason stated")
        return skipped(place, value, f"the default annotator has no preference ({reason})")
    if not tie and preferred not in ("a", "b"):
        raise CaiError(f"{place}: pref: expected a or b, found {preferred}")
    if "prompt" not in value:
        return skipped(place, value, "no prompt: a pair needs the conversation that it answers")
    first, second = (_response(place, value, key) for key in ("response_a", "response_b"))
    chosen, rejected = (second, first) if preferred == "b" else (first, second)
    by_human = annotator.get("type") in ("human", "unknown")  # Inverse CAI writes `unknown` for any dataset
    return [
        {
            "prompt_id": text(place, value, "id"),
            "messages": row_prompt(place, {"prompt": value["prompt"]}),
            "chosen": chosen,
            "rejected": rejected,
            "p": 0.5 if tie else annotator["p"],
            "source": "human" if by_human else "judge",
            "judge": "" if by_human else str(annotator.get("name", annotator["id"])),
        }
    ]


def _response(place: Place, value: RawRow, key: str) -> str:
    response: Any = value[key]
    return text(Place(place.path, f"{place.at}: {key}"), response if isinstance(response, dict) else {}, "text")


def to_annotated_comparison(pair: Preference, number: int) -> dict[str, Any] | Skipped:
    """A pair as a comparison; the hash of the pair decides which answer is `a`.

    The pair's label becomes the default annotator's, each verdict that of an annotator named after its principle.
    """
    prompt = [turn for turn in pair.messages if turn["role"] != "system"]
    if problem := transcript_problem(prompt):
        return Skipped(prompt_id=pair.prompt_id, stage="annotated-pairs", reason=problem)
    chosen, rejected = ("a", "b") if uniform("place", pair.prompt_id, number) < 0.5 else ("b", "a")

    def annotation(p: float) -> dict[str, Any]:
        if p == 0.5:
            return {"pref": None, "no_pref_reason": TIE}
        return {"pref": chosen if p > 0.5 else rejected}

    responses = {
        f"response_{place}": {"text": answer} | ({"model": pair.model} if pair.model else {})
        for place, answer in sorted([(chosen, pair.chosen), (rejected, pair.rejected)])
    }
    by_principle: dict[str, list[Verdict]] = {}
    for verdict in pair.verdicts:
        by_principle.setdefault(verdict.principle_id, []).append(verdict)
    votes = {
        name: annotation(sum(verdict.p for verdict in verdicts) / len(verdicts))
        for name, verdicts in by_principle.items()
    }
    return {
        "id": fingerprint(pair.prompt_id, number),
        "prompt": prompt[0]["content"] if len(prompt) == 1 else transcript(prompt),
        **responses,
        "annotations": {DEFAULT_ID: annotation(pair.p), **votes},
        "metadata": {
            "prompt_id": pair.prompt_id, "p": str(pair.p), "source": pair.source, "tags": ", ".join(pair.tags)
        },
    }  # fmt: skip


def annotated_document(rows: Iterable[dict[str, Any]], name: str, principles: Mapping[str, str]) -> dict[str, Any]:
    """A whole document; `principles` are the judge's questions by id, as far as they are known."""
    comparisons = list(rows)
    by_human = all(c["metadata"]["source"] == "human" for c in comparisons)
    principle_ids = dict.fromkeys(i for c in comparisons for i in c["annotations"] if i != DEFAULT_ID)
    not_applicable = {i: {"pref": None, "no_pref_reason": "not_applicable"} for i in principle_ids}
    return {
        "metadata": {
            "version": "2.0",
            "description": MADE,
            "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "dataset_name": name,
            "default_annotator": DEFAULT_ID,
            "available_metadata_keys_per_comparison": list(METADATA),
        },
        "annotators": {
            DEFAULT_ID: {"name": "preferred_text", "description": DEFAULT, "type": "human" if by_human else "ai"},
            **{i: {"name": i, "description": principles.get(i, i), "type": "principle"} for i in principle_ids},
        },
        "comparisons": [{**c, "annotations": not_applicable | c["annotations"]} for c in comparisons],
    }
