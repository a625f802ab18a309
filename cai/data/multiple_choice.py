"""Multiple-choice questions about a conversation, as pairs (the HHH evaluations, Askell et al. 2021, arXiv:2112.00861).

https://github.com/anthropics/ConstitutionalHarmlessnessPaper/blob/main/evals/438HHHEvaluations.jsonl

A row is `{"prompt", "corrects": [" (B)"], "incorrects": [" (A)"]}`. The prompt holds the conversation and then the
options, a line `… Options:` and ` (A) [[[…]]]` for each. With one correct and one incorrect option `text_correct` and
`text_incorrect` may give both conversations whole, as transcripts; they are preferred, since they need no guessing.
Where `corrects` and `incorrects` are whole answers, as in prompts/RLMadisonFewShotPrompts.json there, the prompt is the
conversation.
"""

import re
from typing import Any

from cai.config.errors import CaiError
from cai.data.files import Place, RowOfFile
from cai.data.forms import TURN, is_transcript, row_prompt, text, turns
from cai.data.records import Message, Messages

START = re.compile(r"\n[^\n]*Options:\n(?= ?\([A-Z]\) \[\[\[)")
OPTION = re.compile(r"^ ?\(([A-Z])\) \[\[\[(.*?)\]\]\](?=\n|\Z)", re.DOTALL | re.MULTILINE)
NAME = re.compile(r" ?\(([A-Z])\)")
OptionPair = tuple[Messages, str, str]
"""A conversation, the correct answer to it, and an incorrect one."""


def option_pairs(place: Place, value: RowOfFile) -> list[OptionPair] | str:
    """Every correct option with every incorrect one, or why the row cannot be read as such.

    Raises: CaiError naming file, line and field for a value that is not of the row's form.
    """
    if all(_are_answers(value[key]) for key in ("corrects", "incorrects")):
        conversation = row_prompt(place, value)
        return [(conversation, good, bad) for good in value["corrects"] for bad in value["incorrects"]]
    correct, incorrect = (_letters(place, key, value) for key in ("corrects", "incorrects"))
    if both := sorted(set(correct) & set(incorrect)):
        return f"option ({both[0]}) is among the correct and the incorrect ones"
    if len(correct) == len(incorrect) == 1 and (pair := _written_out(place, value)) is not None:
        return pair if isinstance(pair, str) else [pair]
    found = _options(text(place, value, "prompt"))
    if isinstance(found, str):
        return found
    messages, texts = found
    if unknown := [letter for letter in (*correct, *incorrect) if letter not in texts]:
        return f"option ({unknown[0]}) is named but not among the prompt's options"
    return [(messages, texts[good], texts[bad]) for good in correct for bad in incorrect]


def _are_answers(values: Any) -> bool:
    is_list = isinstance(values, list) and bool(values)
    return is_list and all(isinstance(v, str) and len(v.strip()) > 3 and not NAME.fullmatch(v) for v in values)


def _letters(place: Place, key: str, value: RowOfFile) -> list[str]:
    names, expected = value.get(key), 'a list of options such as [" (A)"]'
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and NAME.fullmatch(n) for n in names):
        raise CaiError(f"{place}: {key}: expected {expected}, found {str(names)[:60]}")
    return list(dict.fromkeys(name.strip(" ()") for name in names))


def _written_out(place: Place, value: RowOfFile) -> OptionPair | str | None:
    """The pair of `text_correct` and `text_incorrect`; None where they are not there, or are no transcripts."""
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
    """The conversation inside a prompt and its options by letter, or why they cannot be told apart."""
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
    """Turns without the white space around them, which these files have in front of the options."""
    return [Message(role=turn["role"], content=turn["content"].strip()) for turn in turns(transcript)]
