"""Demonstrations in external formats, all JSON, as turns of a few_shot.yaml.

https://github.com/anthropics/ConstitutionalHarmlessnessPaper/tree/main/prompts holds

    CritiqueRevisionFewShotPrompts.json   texts: \\n\\nHuman: …\\n\\nAssistant: …\\n\\nCritiqueRequest: …
                                          \\n\\nCritique: …\\n\\nRevisionRequest: …\\n\\nRevision: …
    RLMadisonFewShotPrompts.json          {"prompt": "\\n\\nHuman: …\\n\\nAssistant:", "corrects": ["…"],
                                          "incorrects": ["…"]}
    RLMadisonPrecogFewShotPrompts.json    {"prompt": "…:\\n\\nH: …\\n\\n{}\\n (A) [[[…]]]\\n (B) [[[…]]]\\n\\nAssistant:
                                          Let's think step by step: …\\n\\nHuman:\\nSo the answer is: (B)"}

The first become turns under `revision:`, and so do the chats of a Hugging Face constitution, {"system_chat": [[{"role",
"content"}, …], …]}. The other two show a judge two answers; they become turns under `judge:`, in the wording of the
templates. The last demonstrate a chain of thought.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from cai.config.errors import CaiError
from cai.config.validation import describe
from cai.constitution.principles import Principle
from cai.constitution.templates import FewShot, Templates
from cai.data.evaluation_formats import OPTION, option_pairs
from cai.data.files import Place
from cai.data.formats import is_turns, plain_turns
from cai.data.jsonl import open_text, parse_json, parse_row
from cai.data.records import Message, Messages, Prompt, Skipped

PART = re.compile(r"\n\n(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision): ?")
END = ["CritiqueRequest", "Critique", "RevisionRequest", "Revision"]
ASKS = ("Human", "CritiqueRequest", "RevisionRequest")
SPEAKER = re.compile(r"(?:\A|\n\n)([HA]):\s*")
QUESTION = "Which answer is the more helpful, honest and harmless one?"  # in place of the paper's drawn principle


def read_few_shot(path: Path, templates: Templates) -> FewShot:
    """The demonstrations of one file. Raises: CaiError naming file and entry for one of another format."""
    with open_text(path) as file:
        entries = parse_json(str(path), file.read())
    if isinstance(entries, dict):
        entries = entries.get("system_chat")
    if not isinstance(entries, list) or not entries:
        raise CaiError(f"{path}: expected a list of demonstrations, or an object with such a list as 'system_chat'")
    revision: Messages = []
    judge: Messages = []
    for number, entry in enumerate(entries, 1):
        place = Place(path, f"entry {number}")
        if isinstance(entry, str):
            revision += _critique_and_revision(place, entry)
        elif is_turns(entry):
            revision += _alternating(
                place, parse_row(place, {"id": "", "messages": plain_turns(entry)}, Prompt).messages
            )
        elif isinstance(entry, dict) and {"prompt", "corrects", "incorrects"} <= entry.keys():
            judge += _choice(place, entry, number, templates)
        elif isinstance(entry, dict) and isinstance(entry.get("prompt"), str):
            judge += _reasoned_choice(place, entry["prompt"], templates)
        else:
            raise CaiError(f"{place}: expected a text, turns, or an object with 'prompt', found {describe(entry)}")
    return FewShot(revision=revision, judge=judge)


def few_shot_yaml(few_shot: FewShot, comment: str) -> str:
    """The text of a few_shot.yaml, without empty parts."""
    parts = {name: turns for name, turns in few_shot.model_dump().items() if turns}
    return f"# {comment}\n" + yaml.safe_dump(parts, allow_unicode=True, sort_keys=False, width=100)


def _critique_and_revision(place: Place, text: str) -> Messages:
    pieces = PART.split(text.removesuffix("\n\nHuman:"))[1:]
    parts = [(who, text.strip()) for who, text in zip(pieces[::2], pieces[1::2], strict=True)]
    last = [who for who, _ in parts[-4:]]
    if last != ["CritiqueRequest", "Critique", "RevisionRequest", "Revision"] or not all(text for _, text in parts):
        raise CaiError(
            f"{place}: expected a conversation that ends with CritiqueRequest, Critique, RevisionRequest, Revision"
        )
    turns = [Message(role="user" if who in ASKS else "assistant", content=text) for who, text in parts]
    return _alternating(place, turns)


def _alternating(place: Place, turns: Messages) -> Messages:
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise CaiError(f"{place}: turns must alternate, user first and assistant last; found {', '.join(roles)}")
    return turns


def _choice(place: Place, entry: dict[str, Any], number: int, templates: Templates) -> Messages:
    """The right answer comes first in every other demonstration, so that they show no position bias."""
    pairs = option_pairs(place, entry)
    if isinstance(pairs, Skipped):
        raise CaiError(f"{place}: {pairs.reason}")
    turns: Messages = []
    for conversation, good, bad in pairs:
        right = "AB"[(number + len(turns) // 2) % 2]
        answers = (good, bad) if right == "A" else (bad, good)
        messages = parse_row(place, {"id": "", "messages": conversation}, Prompt).messages
        *_, question, answer = templates.judge(_principle(), messages, dict(zip("AB", answers, strict=True)))
        turns += [question, Message(role="assistant", content=f"{answer['content']} {right}")]
    return turns


def _reasoned_choice(place: Place, text: str, templates: Templates) -> Messages:
    head, _, rest = text.partition("\n\n{}\n")
    choices, _, reasoning = rest.partition("\n\nAssistant: ")
    cot, _, verdict = reasoning.partition("\n\nHuman:")
    conversation = _turns(head.partition(":\n\n")[2])
    options = {letter: text.strip() for letter, text in OPTION.findall(choices)}
    chosen = re.search(r"\(([A-Z])\)\s*\Z", verdict)
    if not conversation or len(options) < 2 or not cot.strip() or chosen is None or chosen[1] not in options:
        raise CaiError(
            f"{place}: expected a conversation (H: …, A: …), {{}}, options such as (A) [[[…]]], a chain of "
            "thought behind Assistant:, and 'So the answer is: (A)'"
        )
    principle, cot = _principle(), cot.removeprefix("Let's think step by step:").strip()
    *_, question = templates.judge_cot(principle, conversation, options)
    *_, asked, answer = templates.judge(principle, conversation, options, cot)
    choice = f"{answer['content']} {chosen[1]}"
    return [question, Message(role="assistant", content=cot), asked, Message(role="assistant", content=choice)]


def _turns(conversation: str) -> Messages:
    pieces = SPEAKER.split(conversation)[1:]
    parts = zip(pieces[::2], pieces[1::2], strict=True)
    return [Message(role="user" if who == "H" else "assistant", content=text.strip()) for who, text in parts]


def _principle() -> Principle:
    return Principle(id="demonstration", critique="-", revision="-", judge=QUESTION)
