"""External formats of evaluation sets: AlpacaEval's files, and multiple-choice questions such as the HHH evaluations.

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
"""

import re
from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.data.files import Place, RawRow
from cai.data.formats import RowFields, row_id, row_prompt, skipped, text
from cai.data.records import BeforeAfter, Message, Messages, Skipped
from cai.data.transcripts import TURN, is_transcript, turns

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
    """A comparison, named by its two generators and its annotator; skipped where the prompt has several turns."""
    if len(comparison.messages) > 1:
        reason = "AlpacaEval takes a single instruction, and this prompt has several turns"
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
